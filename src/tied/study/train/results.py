"""What is made of finished runs: a table, sentences, JSON, and a folder with a page.

Owns: the words, and which files there are. Must not train or lay out. Read next: `pictures.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tied.reporting.page import Code, Heading, Paragraph, Part, page
from tied.reporting.table import Cell, Table
from tied.study import output_folder
from tied.study.comparison import mean_and_deviation, tied_against_untied
from tied.study.run_record import versions
from tied.study.train.job import FORMAT_VERSION, Job
from tied.study.train.language import LanguageModel, LanguageTask
from tied.study.train.loop import Run
from tied.study.train.pictures import CAPTIONS, first_of_each, gallery
from tied.study.train.task import generator

SAMPLE_TOKENS, PROMPT_TOKENS = 80, 16


def table(runs: Sequence[Run]) -> Table:
    """Make the table: a row for tied, and one for untied."""
    name = runs[0].task.figure_name if runs else "held-out error"
    headers = ("model", "runs", "parameters", "in training", name.replace(" ", "\n"), "seconds\nper run")
    rows = tuple(_row(run, [other for other in runs if other.plan.tie == run.plan.tie]) for run in first_of_each(runs))
    note = f"{name}: on data never trained on; mean ± standard deviation over the seeds."
    return Table(headers, rows, (note,))


def _row(first: Run, runs: Sequence[Run]) -> tuple[Cell, ...]:
    seconds = mean_and_deviation([run.epochs[-1].seconds for run in runs])[0]
    return (
        Cell(first.plan.word),
        Cell(str(len(runs))),
        Cell(f"{first.parameters:,}"),
        Cell(spread([run.result.training for run in runs])),
        Cell(spread([run.held_out for run in runs])),
        Cell(f"{seconds:.1f}"),
    )


def spread(figures: Sequence[float]) -> str:
    """Write a mean with four digits, and the deviation to the same place.

    Example:
        >>> spread([0.01234]), spread([19.0, 21.0])
        ('0.01234', '20.00 ±1.41')
    """
    mean, deviation = mean_and_deviation(figures)
    if len(figures) == 1:
        return f"{mean:#.4g}"
    places = len(f"{mean:#.4g}".partition(".")[2]) if "e" not in f"{mean:#.4g}" else 8
    return f"{mean:.{places}f} ±{deviation:.{places}f}"


def sentences(runs: Sequence[Run]) -> list[str]:
    """Say what came out, a loss included."""
    return [*_price(runs), *_baselines(runs), *_unknown(runs)]


def _price(runs: Sequence[Run]) -> Iterator[str]:
    """Compare tied and untied, whichever is better."""
    pairs = {
        run.plan.seed: {other.plan.tie: other for other in runs if other.plan.seed == run.plan.seed} for run in runs
    }
    both = [pair for pair in pairs.values() if len(pair) == 2]
    if not both:
        return
    tied, untied = ([pair[tie].held_out for pair in both] for tie in (True, False))
    higher = sum(pair[True].held_out > pair[False].held_out for pair in both)
    part = both[0][True].parameters / both[0][False].parameters
    yield (
        f"At equal steps, tied has a {runs[0].task.figure_name} {tied_against_untied(tied, untied)} "
        f"than untied, with {part:.0%} of the parameters; "
        f"it is higher in {higher} of {len(both)} seed{'s' * (len(both) != 1)}."
    )


def _baselines(runs: Sequence[Run]) -> Iterator[str]:
    if runs:
        known = ", ".join(f"{name} {figure:.4g}" for name, figure in runs[0].task.baselines.items())
        yield f"For comparison, the {runs[0].task.figure_name} of {known}."


def _unknown(runs: Sequence[Run]) -> Iterator[str]:
    task = runs[0].task if runs else None
    if isinstance(task, LanguageTask) and task.corpus.unknown_part:
        count, part = len(task.corpus.vocabulary), task.corpus.unknown_part
        yield f"Vocabulary: {count:,} {task.corpus.kind}; {part:.1%} of the held-out ones are not in it."


def writing(run: Run) -> str:
    """Let a language model write on from where the held-out part begins; nothing for another model."""
    if not isinstance(run.model, LanguageModel) or not isinstance(run.task, LanguageTask):
        return ""
    corpus = run.task.corpus
    prompt = corpus.held_out[:PROMPT_TOKENS].tolist()
    numbers = run.model.continued(
        prompt, SAMPLE_TOKENS, context=run.task.plan.context, generator=generator("writing", run.plan.seed)
    )
    return f"{corpus.text(prompt)} | {corpus.text(numbers)}"


def to_json(job: Job, runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything but weights as plain values, ready for `json.dumps`."""
    return {
        "format_version": FORMAT_VERSION,
        **job.to_json(),
        "versions": versions(),
        "source": runs[0].task.source,
        "figure": runs[0].task.figure_name,
        "baselines": runs[0].task.baselines,
        "runs": [_run(run) for run in runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.plan.name,
        "tied": run.plan.tie,
        "seed": run.plan.seed,
        "parameters": run.parameters,
        "epochs": len(run.epochs),
        **{name: getattr(run.result, name) for name in ("step", "training", "held_out", "seconds")},
    }


def write_results(job: Job, runs: Sequence[Run]) -> list[Path]:
    """Write `results.json` and a page without pictures."""
    assert job.out is not None
    return output_folder.write_results(job.out, to_json(job, runs), report(job, runs, {}), CAPTIONS)


def write_pictures(job: Job, runs: Sequence[Run]) -> list[Path]:
    """Write the pictures, and the page anew with the pictures in it.

    Raises:
        MissingPackageError: matplotlib is not installed (the error of `tied.show.pictures`); nothing was written.
    """
    assert job.out is not None
    drawn = gallery(runs)
    return output_folder.write_pictures(job.out, drawn, report(job, runs, drawn))


def report(job: Job, runs: Sequence[Run], drawn: Mapping[str, bytes]) -> str:
    """Write the results as one self-contained HTML page."""
    kind = "language model" if isinstance(runs[0].task, LanguageTask) else "autoencoder"
    compared = "A tied and an untied" if job.compare else "A tied" if job.plan.tie else "An untied"
    return page(f"{compared} {kind}", _parts(job, runs, drawn))


def _parts(job: Job, runs: Sequence[Run], drawn: Mapping[str, bytes]) -> Iterator[Part]:
    yield Paragraph(f"Data: {runs[0].task.source}. {len(runs[0].task.training):,} samples to train on.")
    yield table(runs)
    yield from (Paragraph(sentence) for sentence in sentences(runs))
    yield from output_folder.illustrations(drawn, CAPTIONS)
    for run in first_of_each(runs):
        if text := writing(run):
            yield from (Heading(f"What the {run.plan.word} model writes behind the held-out text"), Code(text))
    yield from (Heading("The command"), Code(job.command()))
