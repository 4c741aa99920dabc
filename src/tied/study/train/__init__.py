"""Training: tied autoencoders and language models on one's own data.

    from tied.study.train import AutoencoderPlan, compare, train

    run = train(AutoencoderPlan(data="digits", sizes=(128, 16)), out="my-run")
    runs = compare(AutoencoderPlan(data="photos/", conv=True), seeds=3)

Owns: plans, data, models, the loop on accelerate, checkpoints, and what is made of finished runs. Names are
loaded when they are first used, so that the command line answers without torch. Must not print. Read next: `plan.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tied.lazy import lazy_names

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

_HOMES = {
    "tied.study.train.plan": "AutoencoderPlan LanguagePlan",
    "tied.study.train.errors": "DataError DivergedError FolderError MissingPackageError PlanError",
    "tied.study.train.run": "compare train",
    "tied.study.train.samples": "Samples",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
