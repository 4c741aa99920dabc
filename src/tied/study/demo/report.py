"""The demo's findings as a table, as sentences and as a folder with a page.

Owns: which columns and pictures there are, what counts as good news, and the words. Must not measure or lay out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tied.reporting.page import Code, Heading, Paragraph, Part, page
from tied.reporting.table import Cell, Table, Tone
from tied.study import output_folder
from tied.study.comparison import mean_and_deviation
from tied.study.demo.pictures import CAPTIONS, gallery
from tied.study.demo.properties import COMPARED_STEPS, Properties
from tied.study.demo.record import DRIFTED, Record
from tied.study.demo.survival import EQUAL, OPERATIONS, YES
from tied.study.digits import CREDIT
from tied.study.recipes import ALL, RAW, TIED, UNTIED
from tied.study.reference import HIDDEN

BLANK = Cell("-")
HEADERS = (
    "recipe",
    "para-\nmeters",
    "uses in\ngradient",
    f"off after\n{COMPARED_STEPS} steps",
    "after\ndeepcopy",
    "after\n.double()",
    "after\nloading",
    "held-out\nerror ×10³",
    "ms per\nstep",
)
NOTES = (
    "parameters: how many numbers an optimizer gets.",
    "uses in gradient: both, if the encoder's gradient is the sum over its two uses.",
    f"off after {COMPARED_STEPS} steps: largest difference to one parameter written out by hand; AdamW with "
    "clipping and decay, float64.",
    "after ...: yes, if the next AdamW step is still that of one parameter; half, if the decoder follows the "
    "encoder's values but trains differently; no, if it does not follow. Loading is torch.save of the state "
    "dict, then load_state_dict(assign=True) into a new model.",
    "held-out error: squared brightness per pixel, mean ± standard deviation over the finished seeds.",
    "ms per step: median over rounds in which each recipe has its turn, one thread.",
)


def results(record: Record) -> Table:
    """Make the table: one row per recipe that was checked."""
    return Table(HEADERS, tuple(_row(record, name) for name in record.properties), NOTES)


def _row(record: Record, name: str) -> tuple[Cell, ...]:
    known = record.properties[name]
    if known.error:
        return Cell(name), Cell("error", "bad"), *[BLANK] * (len(HEADERS) - 2)
    judged = _properties(known)
    plain = [Cell(cell.text) for cell in judged]
    return Cell(name), *(plain if name == UNTIED.name else judged), _error(record, name), _time(record, name)


def _properties(known: Properties) -> list[Cell]:
    difference = known.steps_difference or 0.0
    survived = [known.survival[name].split(":")[0] for name in OPERATIONS]
    return [
        Cell(f"{known.parameters:,}"),
        _judged("both" if known.gradient_from_both else "one", good=known.gradient_from_both),
        _judged(f"{difference:{'.0e' if difference < EQUAL else '#.2g'}}", good=difference < EQUAL),
        *(_judged(word, good=word == YES) for word in survived),
    ]


def _judged(text: str, *, good: bool) -> Cell:
    tone: Tone = "good" if good else "bad"
    return Cell(text, tone)


def _error(record: Record, name: str) -> Cell:
    errors = record.errors(name)
    if not errors:
        return BLANK
    mean, deviation = (value * 1000 for value in mean_and_deviation(errors))
    return Cell(f"{mean:.2f} ±{deviation:.2f}" if len(errors) > 1 else f"{mean:.2f}")


def _time(record: Record, name: str) -> Cell:
    return Cell(f"{record.milliseconds[name]:.3f}") if name in record.milliseconds else BLANK


def sentences(record: Record) -> list[str]:
    """Say what the table shows, in words, with the figures of this run; only what is known."""
    return [*_refusal(record), *_silence(record), *_price(record), *_drift(record)]


def _refusal(record: Record) -> Iterator[str]:
    if RAW.name in record.properties:
        yield f"{RAW.line} fails: {record.properties[RAW.name].error}"


def _price(record: Record) -> Iterator[str]:
    if record.price():
        tied, untied = (record.properties[recipe.name].parameters for recipe in (TIED, UNTIED))
        yield (
            f"The price of tying, at equal steps: a held-out error {record.price()} than untied, "
            f"with {tied:,} parameters instead of {untied:,}."
        )


def _silence(record: Record) -> Iterator[str]:
    known = [one for one in record.properties.values() if not one.error and one.recipe != UNTIED.name]
    wrong = [one.recipe for one in known if (one.steps_difference or 0.0) >= EQUAL]
    if wrong:
        yield f"Wrong without any error message: {', '.join(wrong)}."


def _drift(record: Record) -> Iterator[str]:
    tied, drifted = record.first_run(TIED.name), record.first_run(DRIFTED)
    if tied and drifted:
        yield (
            "Largest difference between encoder and decoder weights after training: "
            f"{tied.parts.spread():.2g} for tied, {drifted.parts.spread():.2g} for {DRIFTED}."
        )


def write_data(record: Record, folder: Path) -> list[Path]:
    """Write `results.json` and a page without pictures."""
    return output_folder.write_results(folder, record.to_json(), report(record, {}), CAPTIONS)


def write_pictures(record: Record, folder: Path) -> list[Path]:
    """Write the pictures, and the page anew with the pictures in it.

    Raises:
        MissingPackageError: matplotlib is not installed; nothing was written.
    """
    drawn = gallery(record)
    return output_folder.write_pictures(folder, drawn, report(record, drawn))


def report(record: Record, drawn: Mapping[str, bytes]) -> str:
    """Write the findings as one self-contained HTML page."""
    return page("Ten ways to tie an autoencoder", _parts(record, drawn))


def _parts(record: Record, drawn: Mapping[str, bytes]) -> list[Part]:
    return [
        Paragraph(_introduction(record)),
        results(record),
        *(Paragraph(sentence) for sentence in sentences(record)),
        *output_folder.illustrations(drawn, CAPTIONS),
        Heading("What people write"),
        Code("\n".join(f"{recipe.name:20} {recipe.line}" for recipe in ALL)),
        Paragraph(f"Data: {CREDIT}."),
    ]


def _introduction(record: Record) -> str:
    plan = record.plan
    last = "Interrupted: this is what was finished." if record.interrupted else "Every figure is from this run."
    return (
        f"A 64-{HIDDEN}-64 autoencoder on 1797 handwritten digits, every recipe from the same start: "
        f"{plan.epochs} epochs, {plan.seeds} seeds from {plan.seed}, {record.elapsed_seconds:.0f} s. {last}"
    )
