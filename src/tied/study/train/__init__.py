"""Training: tied autoencoders and language models on one's own data.

    from tied.study.train import AutoencoderPlan, compare, train

    run = train(AutoencoderPlan(data="digits", sizes=(128, 16)), out="my-run")
    runs = compare(AutoencoderPlan(data="photos/", conv=True), seeds=3)

Owns: plans, data, models, the loop on accelerate, checkpoints, and what is made of finished runs. Names are
loaded when they are first used, so that the command line answers without torch. Read next: `plan.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tied.study.train.errors import (
        DataError as DataError,
        DivergedError as DivergedError,
        FolderError as FolderError,
        MissingPackageError as MissingPackageError,
        PlanError as PlanError,
    )
    from tied.study.train.plan import AutoencoderPlan as AutoencoderPlan, LanguagePlan as LanguagePlan
    from tied.study.train.run import compare as compare, train as train
    from tied.study.train.samples import Samples as Samples

_NAMES = {
    "plan": "AutoencoderPlan LanguagePlan",
    "errors": "DataError DivergedError FolderError MissingPackageError PlanError",
    "run": "compare train",
    "samples": "Samples",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOMES})
