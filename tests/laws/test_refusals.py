"""What a tie cannot survive ends in an error, with the model as it was; the table of `docs/limits.md` is made here.

Each refusal is provoked on a transposed and on an identity tie; the error's class is pinned, the model afterwards
obeys the law of `assert_still_tied`, and the way out that the table names is taken.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from corpus import CASES, Case, assert_still_tied, tied_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import tied

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
BEGIN, END = "<!-- refusals: written by tests/laws/test_refusals.py -->\n", "<!-- end of refusals -->\n"

BOTH = [c for c in CASES if str(c) in ("Autoencoder-encoder.weight.T", "LanguageModel-embed.weight")]
TRANSPOSED = BOTH[:1]

Act = Callable[[nn.Module, Case], object]


def owner(model: nn.Module, case: Case) -> nn.Module:
    """The module that holds the target."""
    return model.get_submodule(case.target.rpartition(".")[0])


def source(model: nn.Module) -> nn.Module:
    """The module that holds the source."""
    return getattr(model, "encoder", None) or model.embed


@dataclass(frozen=True)
class Refusal:
    """An operation that no tie survives.

    Attributes:
        operation: As a user would say it; the first column.
        error: The class of the error, or that of a live target and that of one which is read late; the second column.
        why: Why it cannot be done; the third column.
        way: What to do instead; the fourth column.
        act: Does it.
        instead: Takes the way out, on a fresh model; must not raise.
        cases: The ties on which it is refused.
        spoils: Whether torch has changed the model by then.
        needs: A package without which it cannot be tried.
    """

    operation: str
    error: type[Exception] | tuple[type[Exception], ...]
    why: str
    way: str
    act: Act
    instead: Act
    cases: tuple[Case, ...] = tuple(BOTH)
    spoils: bool = False
    needs: str = ""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return self.error if isinstance(self.error, tuple) else (self.error,)

    def __str__(self) -> str:
        return self.operation


def untied_first(act: Act) -> Act:
    def instead(model: nn.Module, case: Case) -> object:
        tied.untie(model)
        return act(model, case)

    return instead


def read(model: nn.Module, case: Case) -> Tensor:
    return getattr(owner(model, case), "weight")  # noqa: B009


def on_target(change: Callable[[nn.Module], object]) -> Act:
    return lambda model, case: change(owner(model, case))


def on_source(change: Callable[[nn.Module], object]) -> Act:
    return lambda model, case: change(source(model))


def quantized(model: nn.Module, case: Case) -> Tensor:
    made = torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear})
    return made(case.inputs().float())


def quantized_by_torchao(model: nn.Module, case: Case) -> Tensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.float(), Int8WeightOnlyConfig())
    return model(case.inputs().float() if case.inputs().is_floating_point() else case.inputs())


def sharded_by_layer(model: nn.Module, case: Case) -> Tensor:
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for name in ("encoder", "embed"):
            if hasattr(model, name):
                cpu = torch.device("cpu")
                setattr(model, name, FullyShardedDataParallel(getattr(model, name), device_id=cpu))
        return model(case.inputs())
    finally:
        dist.destroy_process_group()


def with_lora(place: str, **options: bool) -> Act:
    def act(model: nn.Module, case: Case) -> object:
        from peft import LoraConfig, get_peft_model

        names = {"target": case.target.rpartition(".")[0], "source": "encoder" if case is BOTH[0] else "embed"}
        adapted = get_peft_model(model, LoraConfig(target_modules=[names[place]], r=2, **options))
        adapted(case.inputs())
        return adapted.merge_and_unload()

    return act


def frozen_through_a_norm(model: nn.Module, case: Case) -> None:
    parametrizations.weight_norm(source(model))
    owner(model, case).requires_grad_(False)


def written_through_pruning(model: nn.Module, case: Case) -> None:
    prune.l1_unstructured(source(model), "weight", 0.5)
    with torch.no_grad():
        read(model, case).zero_()


def loaded_with_two_values(model: nn.Module, case: Case) -> None:
    state = copy.copy(model.state_dict())
    model.load_state_dict({**state, case.target: read(model, case).detach() + 1})


def without_source(model: nn.Module, case: Case) -> Tensor:
    del source(model).weight
    return read(model, case)


def without_module(model: nn.Module, case: Case) -> Tensor:
    delattr(model, "encoder" if hasattr(model, "encoder") else "embed")
    return read(model, case)


def cloned(module: nn.Module) -> nn.Module:
    twin = module._replicate_for_data_parallel()
    twin._parameters = dict(module._parameters)
    twin._modules = {name: child and cloned(child) for name, child in module._modules.items()}
    return twin


def half_on_meta(model: nn.Module, case: Case) -> Tensor:
    source(model).to("meta")
    return read(model, case)


SCRIPT = pytest.mark.filterwarnings("ignore")

REFUSALS = [
    Refusal(
        "assign, delete or register another tensor at the target",
        tied.WriteError,
        "the target owns no memory",
        "assign to the source, or `untie` first",
        on_target(lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(6, 4)))),
        untied_first(on_target(lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(6, 4))))),
    ),
    Refusal(
        "`weight.register_hook` on a target with a transform",
        tied.KindError,
        "each read is a new tensor",
        "hook the source, or the module",
        lambda model, case: read(model, case).register_hook(print),
        on_source(lambda m: m.weight.register_hook(print)),
        tuple(TRANSPOSED),
    ),
    Refusal(
        "`torch.nn.utils.prune` on the target",
        tied.KindError,
        "pruning wants a Parameter of the module's own",
        "prune the source, or `untie` first",
        on_target(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        on_source(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
    ),
    Refusal(
        "a parametrization of the target: `weight_norm`, `spectral_norm`, `register_parametrization` …",
        (tied.WriteError, ValueError),
        "it would be a change for all uses",
        "parametrize the source, or `untie` first",
        on_target(lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh())),
        on_source(parametrizations.weight_norm),
    ),
    Refusal(
        "the old `torch.nn.utils.weight_norm` and `spectral_norm` on the target",
        (tied.WriteError, KeyError),
        "the same",
        "the same",
        on_target(lambda m: nn.utils.weight_norm(m)),
        untied_first(on_target(lambda m: nn.utils.weight_norm(m))),
    ),
    Refusal(
        "freeze through the target where the source is parametrized",
        tied.KindError,
        "there is no one Parameter to freeze",
        "freeze the source's module",
        frozen_through_a_norm,
        on_source(lambda m: parametrizations.weight_norm(m).requires_grad_(False)),
        spoils=True,
    ),
    Refusal(
        "write to the target where the source is computed and has no right inverse",
        tied.InverseError,
        "the value would be lost at the next read",
        "write to what the source is computed from",
        written_through_pruning,
        on_source(lambda m: nn.init.zeros_(prune.l1_unstructured(m, "weight", 0.5).weight_orig)),
        spoils=True,
    ),
    Refusal(
        "load a file with two different values for one tie",
        tied.ConflictError,
        "one of them would win by accident",
        '`tied.load_state_dict(model, state, keep="source")`',
        loaded_with_two_values,
        lambda model, case: tied.load_state_dict(
            model, {**model.state_dict(), case.target: read(model, case).detach() + 1}, keep="source"
        ),
    ),
    Refusal(
        "delete the source",
        tied.SourceGoneError,
        "there is nothing to read (found at the next read)",
        "`untie` first",
        without_source,
        lambda model, case: (tied.untie(model), source(model).__delattr__("weight"), read(model, case)),
        spoils=True,
    ),
    Refusal(
        "move the module of a transform's source alone to `meta`",
        tied.SourceGoneError,
        "torch would compute garbage from it without a word (found at the next read)",
        "move the model",
        half_on_meta,
        lambda model, case: read(model.to("meta"), case),
        tuple(TRANSPOSED),
        spoils=True,
    ),
    Refusal(
        "`torch.jit.script` of a tie with a transform",
        RuntimeError,
        "TorchScript compiles classes, and the target's is made at run time; tracing and `torch.export` work",
        "`untie` first, or `torch.export`",
        lambda model, case: torch.jit.script(model),
        untied_first(lambda model, case: torch.jit.script(model)),
        tuple(TRANSPOSED),
    ),
    Refusal(
        "`torch.ao.quantization.quantize_dynamic` of a transposed source",
        tied.SourceGoneError,
        "the source is packed, and is no tensor any more (found at the next read)",
        "`untie` first",
        quantized,
        untied_first(quantized),
        tuple(TRANSPOSED),
        spoils=True,
    ),
    Refusal(
        "torchao's `quantize_`",
        tied.TieError,
        "its tensors know no views, and are assigned over the target",
        "`untie` first",
        quantized_by_torchao,
        untied_first(quantized_by_torchao),
        spoils=True,
        needs="torchao",
    ),
    *(
        Refusal(
            f"merge LoRA that is around the {end}",
            tied.WriteError,
            "the change of one use would go into all of them",
            "`untie` first, which leaves each end a weight of its own",
            with_lora(end),
            untied_first(with_lora(end)),
            spoils=True,
            needs="peft",
        )
        for end in ("target", "source")
    ),
    Refusal(
        "read a transform in a clone made of new modules over a copied `__dict__` (DataParallel's replicas)",
        tied.SourceGoneError,
        "its target would read the source of the original (found at the next read)",
        "`copy.deepcopy`, `torch.func.functional_call`, or `untie` first",
        lambda model, case: read(cloned(model), case),
        untied_first(lambda model, case: read(cloned(model), case)),
        tuple(TRANSPOSED),
    ),
    Refusal(
        "take the module of a transform's source out of the model",
        tied.SourceGoneError,
        "nobody would train or save what the target reads (found at the next read)",
        "`untie` first, or put another module in its place",
        without_module,
        untied_first(without_module),
        tuple(TRANSPOSED),
        spoils=True,
    ),
    Refusal(
        "FSDP1 around the source's layer, and not around the target's",
        tied.SourceGoneError,
        "FSDP1 frees what it has flattened (found at the first forward)",
        "FSDP1 around the whole model, or FSDP2",
        sharded_by_layer,
        lambda model, case: model(case.inputs()),
        spoils=True,
    ),
]


@SCRIPT
@pytest.mark.parametrize("case", BOTH, ids=str)
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_refused_with_a_way_out(refusal: Refusal, case: Case) -> None:
    if case not in refusal.cases:
        pytest.skip("this tie survives it")
    if refusal.needs:
        pytest.importorskip(refusal.needs, exc_type=ImportError)
    model = tied_model(case)
    with pytest.raises(refusal.errors) as caught:
        refusal.act(model, case)
    if case not in TRANSPOSED or issubclass(refusal.errors[-1], tied.TieError):
        assert isinstance(caught.value, tied.TieError)
        assert caught.value.fix
    if not refusal.spoils:
        assert_still_tied(model, case)
    refusal.instead(tied_model(case), case)


def row(refusal: Refusal) -> str:
    ours = [f"[{e.__name__}](errors.md#{e.__name__.lower()})" for e in refusal.errors if issubclass(e, tied.TieError)]
    others = [f"torch's `{e.__name__}`" for e in refusal.errors if not issubclass(e, tied.TieError)]
    name = " or ".join(ours + others)
    return f"| {refusal.operation} | {name} | {refusal.why} | {refusal.way} |\n"


def test_the_table_in_the_docs(request: pytest.FixtureRequest) -> None:
    table = "| operation | ends in | because | instead |\n|---|---|---|---|\n" + "".join(map(row, REFUSALS))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    known, _, after = rest.partition(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8", newline="\n")
        return
    assert known == table, "docs/limits.md is behind: run `pytest --update-golden` and read the difference"


def test_every_error_of_ours_has_its_section() -> None:
    sections = (PAGE.parent / "errors.md").read_text(encoding="utf-8")
    assert all(f"## {e.__name__}\n" in sections for r in REFUSALS for e in r.errors if issubclass(e, tied.TieError))
