"""What one call trains: a plan, or a plan and its untied twin over some seeds; and the folder it is kept in.

Owns: which runs there are, and whether a folder may be used. Must not train. Read next: `run.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tied.study.output_folder import prepare, write_json
from tied.study.train.autoencoder import AutoencoderTask
from tied.study.train.errors import FolderError, PlanError
from tied.study.train.language import LanguageTask
from tied.study.train.plan import AutoencoderPlan, LanguagePlan
from tied.study.train.reading import read_samples, unreadable
from tied.study.train.samples import Samples
from tied.study.train.task import Task
from tied.study.train.text import Corpus, read_corpus

FORMAT_VERSION = 1
PLAN = "plan.json"
Plan = AutoencoderPlan | LanguagePlan
Data = Samples | Corpus


@dataclass(frozen=True)
class Job:
    """What to train, and where to keep it.

    Attributes:
        plan: The plan; of a comparison, the first.
        compare: Whether the untied twin is trained, too.
        seeds: How many starts, splits and orders, from the plan's seed on.
        out: Folder of the run; nothing is written where there is none.
        resume: Whether to go on with what the folder holds.
    """

    plan: Plan
    compare: bool = False
    seeds: int = 1
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse a comparison that would not be one.

        Raises:
            PlanError: there are no seeds, or patience would end the twins at different steps.
        """
        if self.seeds < 1:
            raise PlanError("seeds", self.seeds, "1 or more")
        if self.compare and self.plan.patience:
            raise PlanError("patience", self.plan.patience, "0 with --compare, which is at equal steps")

    @property
    def plans(self) -> list[Plan]:
        """The runs, in order: for each seed the plan, then its twin."""
        seeds = range(self.plan.seed, self.plan.seed + self.seeds)
        ties = (True, False) if self.compare else (self.plan.tie,)
        return [dataclasses.replace(self.plan, seed=seed, tie=tie) for seed in seeds for tie in ties]

    def command(self) -> str:
        """Write the command that does this job, without --resume."""
        words = ["tied", "train", self.plan.kind]
        for field in dataclasses.fields(self.plan):
            value = getattr(self.plan, field.name)
            if value != field.default:
                words += _option(field.name, value)
        words += ["--compare"] * self.compare
        words += ["--seeds", str(self.seeds)] * (self.seeds != (3 if self.compare else 1))
        words += ["--out", str(self.out)] * (self.out is not None)
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain values."""
        plan = json.loads(json.dumps(dataclasses.asdict(self.plan)))
        return {"kind": self.plan.kind, "plan": plan, "compare": self.compare, "seeds": self.seeds}


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"]


def read_data(plan: Plan) -> Data:
    """Read the data of a plan.

    Raises:
        DataError: it cannot be trained on.
        MissingPackageError: a package for this kind of file is not installed.
    """
    if isinstance(plan, AutoencoderPlan):
        return read_samples(plan.data)
    return read_corpus(plan.data, kind=plan.tokens, context=plan.context)


def task_of(plan: Plan, data: Data) -> Task:
    """Return the task of a plan on its data.

    Raises:
        PlanError: convolutions on rows of numbers.
        TypeError: data of the other kind.
    """
    if isinstance(plan, AutoencoderPlan) and isinstance(data, Samples):
        if plan.conv and not data.are_images:
            raise PlanError("conv", plan.conv, "left out for rows of numbers, which have no height and width")
        return AutoencoderTask(plan, data)
    if isinstance(plan, LanguagePlan) and isinstance(data, Corpus):
        return LanguageTask(plan, data)
    raise TypeError(f"{type(plan).__name__} does not go with {type(data).__name__}")


def fingerprint(data: Data) -> str:
    """Return a digest of all values: another one, and the data has changed."""
    tensors = (data.values, data.labels) if isinstance(data, Samples) else (data.training, data.held_out)
    names = data.names if isinstance(data, Samples) else data.vocabulary
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# The folder


def check_folder(job: Job, data: Data) -> None:
    """Make sure that the job may use its folder; nothing is changed.

    Raises:
        FolderError: it holds a run and nobody said to resume it; or it holds none, or another one, to resume.
        DataError: its `plan.json` is broken.
    """
    if job.out is None:
        return
    path = job.out / PLAN
    if not path.exists():
        if job.resume:
            raise _nothing_there(job)
        return
    if not job.resume:
        raise _occupied(job)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        differences = list(_differences(known, _described(job, data)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, f"{type(error).__name__}: {error}") from None
    if differences:
        raise _another(job, differences)


def write_plan(job: Job, data: Data) -> None:
    """Write the job into its folder, which is made if need be.

    Raises:
        OSError: it cannot be.
    """
    if job.out is not None:
        prepare(job.out)
        write_json(job.out / PLAN, _described(job, data))


def _described(job: Job, data: Data) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **job.to_json(), "data": fingerprint(data)}


def _differences(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Word what is not as it was; more or fewer epochs are fine."""
    then, now = known["plan"] | {"epochs": 0}, wanted["plan"] | {"epochs": 0}
    found = [f"{name}: {then.get(name)!r}, now {now[name]!r}" for name in now if then.get(name) != now[name]]
    for name in ("kind", "compare", "seeds"):
        if known[name] != wanted[name]:
            found.append(f"{name}: {known[name]!r}, now {wanted[name]!r}")
    if not found and known["data"] != wanted["data"]:
        found.append("the values of the data")
    return found


def _nothing_there(job: Job) -> FolderError:
    return FolderError(
        "There is nothing to resume.",
        found=f"no {PLAN} in {job.out}",
        expected="a folder in which a training was begun",
        fix="leave out --resume, or name that folder with --out",
    )


def _occupied(job: Job) -> FolderError:
    return FolderError(
        f"{job.out} holds a training already.",
        found=f"{PLAN} in {job.out}",
        expected="another folder, or --resume",
        fix=f"{job.command()} --resume",
    )


def _another(job: Job, differences: list[str]) -> FolderError:
    return FolderError(
        f"{job.out} holds another training.",
        found="; ".join(differences),
        expected="what was asked for when it was begun; only --epochs may differ",
        fix="the same options as then, or another --out",
    )
