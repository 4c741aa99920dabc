"""Models of transformers: what `from_pretrained` needs beside the tensors.

Owns: what is known of transformers here; it is never imported, only asked what the model itself offers. Must not
change the model. Read next: `load.py`.

`from_pretrained` reads no ledger. It makes the ties that the configuration and the class ask for, and
draws random values for what is missing. So a target that it would not tie by itself has to be stored: a head that is
tied while the configuration says `tie_word_embeddings: false`, layers that share, anything transposed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from tied.algebra import Ref
from tied.binding.followers.transformers_keys import entered
from tied.files.models.model_names import inner
from tied.files.reading.file_ledger import Equation, name_of


def is_pretrained(model: nn.Module) -> bool:
    """Tell whether a model is one of transformers: it has a configuration that writes itself."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_json_string")


def companions(model: nn.Module) -> dict[str, str]:
    """Return the files that stand beside the tensors, by name: none for a model that is not of transformers."""
    found: Any = inner(model)
    if not is_pretrained(found):
        return {}
    config = copy.deepcopy(found.config)
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", str(found.dtype).removeprefix("torch."))
    config.architectures = [type(found).__name__.removeprefix("FSDP")]
    files: dict[str, str] = {"config.json": config.to_json_string()}
    if hasattr(found, "can_generate") and found.can_generate() and getattr(found, "generation_config", None):
        files["generation_config.json"] = found.generation_config.to_json_string()
    return files


def must_be_stored(model: nn.Module) -> Callable[[Equation], bool]:
    """Return what tells whether a target has to be stored, because `from_pretrained` would not restore it."""
    model = inner(model)
    if not is_pretrained(model):
        return lambda _: False
    groups = _groups(model)

    def is_lost(tie: Equation) -> bool:
        if not isinstance(tie.source, Ref):
            return True
        kept = name_of(tie.source.address)
        return groups.get(tie.target, tie.target) != groups.get(kept, kept)

    return is_lost


def _groups(model: nn.Module) -> dict[str, str]:
    """Return the names that transformers ties under the present configuration, each with the first of its group."""
    expanded: Any = getattr(model, "get_expanded_tied_weights_keys", None)
    ours = entered(model)
    found: dict[str, str] = {} if expanded is None else expanded(all_submodels=True)
    pairs = {target: source for target, source in found.items() if target not in ours}
    groups = dict[str, str]()
    for target, source in pairs.items():
        one, other = groups.get(target, target), groups.get(source, source)
        for name in [target, source, *(name for name, group in groups.items() if group == one)]:
            groups[name] = other
    return groups
