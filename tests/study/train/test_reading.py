"""Data of every kind, right and wrong: each error names the file and says what to do, whole."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tied.study.train import DataError, MissingPackageError, Samples
from tied.study.train.reading import read_samples

ROWS = np.arange(60, dtype=np.float64).reshape(12, 5)
GRAY = np.random.default_rng(0).integers(0, 255, (12, 6, 5), dtype=np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_images(folder: str, arrays, *, classes=()) -> None:
    for number, array in enumerate(arrays):
        place = Path(folder, classes[number] if len(classes) else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / f"{number:02}.png")


def csv_of(header="", rows=ROWS) -> str:
    return "\n".join([*([header] if header else []), *(",".join(f"{cell:g}" for cell in row) for row in rows)]) + "\n"


# Right


def test_digits():
    digits = read_samples("digits")
    assert digits.values.shape == (1797, 1, 8, 8)
    assert digits.values.max() == 16
    assert digits.names == tuple("0123456789")
    assert digits.are_images


def test_npy_rows():
    np.save("a.npy", ROWS)
    read = read_samples("a.npy")
    assert not read.are_images
    assert torch.equal(read.values, torch.from_numpy(ROWS).float())
    assert read.labels.shape == (0,)
    assert read.source == "a.npy"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((12, 6, 5), (12, 1, 6, 5)),
        ((12, 6, 5, 3), (12, 3, 6, 5)),
        ((12, 3, 6, 5), (12, 3, 6, 5)),
        ((12, 3, 5, 3), (12, 3, 3, 5)),
        ((12, 6, 5, 7), (12, 7, 6, 5)),
    ],
)
def test_axes_of_images(shape, expected):
    values = np.random.default_rng(0).random(shape)
    assert Samples.of(values).values.shape == expected
    if shape == (12, 6, 5, 3):
        assert torch.equal(Samples.of(values).values, torch.from_numpy(values).float().permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64", ">f8"])
def test_dtypes(dtype):
    np.save("a.npy", ROWS.astype(dtype))
    assert read_samples("a.npy").values.dtype == torch.float32


def test_npz_with_labels():
    np.savez("a.npz", images=GRAY, labels=np.repeat([7, 3], 6))
    read = read_samples("a.npz")
    assert read.values.shape == (12, 1, 6, 5)
    assert read.names == ("3", "7")
    assert read.labels.tolist() == [1] * 6 + [0] * 6


def test_npz_with_one_array_of_any_name():
    np.savez("a.npz", whatever=ROWS)
    assert read_samples("a.npz").values.shape == (12, 5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_folder_of_images_of_any_mode(mode):
    Path("photos").mkdir()
    for number, pixels in enumerate(GRAY):
        image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
        (image if mode == "I;16" else image.convert(mode)).save(f"photos/{number:02}.png")
    read = read_samples("photos")
    colored = mode in {"RGB", "RGBA", "P"}
    assert read.values.shape == (12, 3 if colored else 1, 6, 5)
    if mode in {"L", "RGB", "RGBA", "P"}:
        assert torch.equal(read.values[:, 0], torch.from_numpy(GRAY).float())
    if mode == "I;16":
        assert torch.equal(read.values[:, 0], torch.from_numpy(GRAY).float() * 257)


def test_gray_among_colored_becomes_colored():
    write_images("photos", [*GRAY[:6], *np.repeat(GRAY[6:, :, :, None], 3, axis=3)])
    read = read_samples("photos")
    assert torch.equal(read.values, torch.from_numpy(GRAY).float()[:, None].expand(-1, 3, -1, -1))


def test_subfolders_are_labels():
    write_images("photos", GRAY, classes=["cat", "dog"] * 6)
    Path("photos/notes.txt").write_text("mine")
    read = read_samples("photos")
    assert read.names == ("cat", "dog")
    assert read.labels.tolist() == [0] * 6 + [1] * 6


def test_images_beside_subfolders_have_no_labels():
    write_images("photos", GRAY[:6], classes=["cat"] * 6)
    write_images("photos", GRAY[6:])
    assert read_samples("photos").names == ()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (csv_of(), ()),
        (csv_of("a,b,c,d,e"), ()),
        (csv_of().replace(",", ";"), ()),
        (csv_of().replace(",", "\t"), ()),
        ("\ufeff" + csv_of("a,b,c,d,e"), ()),
        (csv_of("a,b,c,d,e").replace("\n", "\r\n\r\n"), ()),
        (
            "a,b,c,Label,d,e\n"
            + "".join(f"{r[0]},{r[1]},{r[2]}, x{i % 2},{r[3]},{r[4]}\n" for i, r in enumerate(ROWS)),
            ("x0", "x1"),
        ),
    ],
    ids=["bare", "header", "semicolon", "tab", "mark", "blank lines", "label"],
)
def test_csv(text, labels):
    Path("a.csv").write_text(text, encoding="utf-8")
    read = read_samples("a.csv")
    assert torch.equal(read.values, torch.from_numpy(ROWS).float())
    assert read.names == labels


def test_parquet():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: ROWS[:, index] for index, name in enumerate("abcde")}
    parquet.write_table(pyarrow.table(columns | {"class": ["x", "y"] * 6}), "a.parquet")
    read = read_samples("a.parquet")
    assert torch.equal(read.values, torch.from_numpy(ROWS).float())
    assert read.names == ("x", "y")


# Scale and split


def test_split_is_by_seed_and_loses_nothing():
    samples = Samples.of(ROWS, np.arange(12))
    training, held_out = samples.split(0)
    assert (len(training), len(held_out)) == (9, 3)
    assert sorted([*training.labels.tolist(), *held_out.labels.tolist()]) == list(range(12))
    assert torch.equal(training.values, samples.values[training.labels])
    assert torch.equal(samples.split(0)[0].labels, training.labels)
    assert not torch.equal(samples.split(1)[0].labels, training.labels)


def test_images_are_scaled_by_the_training_part_as_a_whole():
    samples = Samples.of(GRAY.astype(float) * 3 - 100)
    training, held_out = samples.split(0)
    scaled = training.scaled_by(training).values
    assert (float(scaled.min()), float(scaled.max())) == (0, 1)
    low, high = training.values.min(), training.values.max()
    assert torch.allclose(held_out.scaled_by(training).values, (held_out.values - low) / (high - low))


def test_rows_are_scaled_by_column_and_constant_ones_vanish():
    rows = np.c_[ROWS, np.full(12, 1e6), ROWS[:, 0] * 1e-9]
    training, held_out = Samples.of(rows).split(0)
    scaled = training.scaled_by(training).values
    assert torch.allclose(scaled.mean(0), torch.zeros(7), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 1, 1, 1, 1, 0, 1]), atol=1e-5)
    assert not held_out.scaled_by(training).values[:, 5].any()


# Wrong


def rows_with(value, at=(4, 2)) -> np.ndarray:
    rows = ROWS.copy()
    rows[at] = value
    return rows


def bad_image(folder: str) -> None:
    write_images(folder, GRAY)
    Path(folder, "07.png").write_bytes(b"no picture")


def broken_npy() -> None:
    np.save("a.npy", ROWS)
    Path("a.npy").write_bytes(Path("a.npy").read_bytes()[:-50])


def two_sizes() -> None:
    write_images("photos", [*GRAY, np.zeros((7, 9), np.uint8)])


def parquet_of(**columns) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": ROWS[:, 0], **columns}), "a.parquet")


WRONG = {
    "missing": (lambda: None, "nothing.npy"),
    "unknown name": (lambda: None, "mnist"),
    "unknown type": (lambda: Path("a.mp3").write_text("x"), "a.mp3"),
    "empty file": (lambda: Path("a.npy").write_bytes(b""), "a.npy"),
    "broken array": (broken_npy, "a.npy"),
    "no array": (lambda: Path("a.npy").write_text("hello, this is text"), "a.npy"),
    "objects": (lambda: np.save("a.npy", np.array([{}, None]), allow_pickle=True), "a.npy"),
    "words": (lambda: np.save("a.npy", np.array([["a", "b"]] * 12)), "a.npy"),
    "complex": (lambda: np.save("a.npy", ROWS.astype(complex)), "a.npy"),
    "one axis": (lambda: np.save("a.npy", np.arange(100.0)), "a.npy"),
    "five axes": (lambda: np.save("a.npy", np.zeros((12, 2, 2, 2, 2))), "a.npy"),
    "NaN": (lambda: np.save("a.npy", rows_with(np.nan)), "a.npy"),
    "infinite in float32": (lambda: np.save("a.npy", rows_with(1e300)), "a.npy"),
    "one sample": (lambda: np.save("a.npy", ROWS[:1]), "a.npy"),
    "no sample": (lambda: np.save("a.npy", ROWS[:0]), "a.npy"),
    "no column": (lambda: np.save("a.npy", np.zeros((12, 0))), "a.npy"),
    "all the same": (lambda: np.save("a.npy", np.ones((12, 5))), "a.npy"),
    "two arrays": (lambda: np.savez("a.npz", first=ROWS, second=ROWS), "a.npz"),
    "no arrays": (lambda: np.savez("a.npz"), "a.npz"),
    "labels of another number": (lambda: np.savez("a.npz", x=ROWS, y=np.arange(5)), "a.npz"),
    "an array called npz": (lambda: (np.save("b.npy", ROWS), Path("b.npy").rename("a.npz")), "a.npz"),
    "an archive called npy": (lambda: (np.savez("b.npz", ROWS), Path("b.npz").rename("a.npy")), "a.npy"),
    "empty folder": (lambda: Path("photos").mkdir(), "photos"),
    "folder without images": (lambda: (Path("photos").mkdir(), Path("photos/a.txt").write_text("x")), "photos"),
    "one image": (lambda: write_images("photos", GRAY[:1]), "photos"),
    "mixed sizes": (two_sizes, "photos"),
    "broken image": (lambda: bad_image("photos"), "photos"),
    "empty csv": (lambda: Path("a.csv").write_text("\n\n"), "a.csv"),
    "header only": (lambda: Path("a.csv").write_text("a,b\n"), "a.csv"),
    "few rows": (lambda: Path("a.csv").write_text("a,b\n1,2\n3,4\n"), "a.csv"),
    "a word": (lambda: Path("a.csv").write_text(csv_of("a,b,c,d,e").replace("22", "x y")), "a.csv"),
    "a gap": (lambda: Path("a.csv").write_text(csv_of("a,b,c,d,e").replace("22", "")), "a.csv"),
    "a NaN": (lambda: Path("a.csv").write_text(csv_of("a,b,c,d,e").replace("22", "nan")), "a.csv"),
    "a short row": (lambda: Path("a.csv").write_text(csv_of("a,b,c,d,e").replace("22,", "")), "a.csv"),
    "no text": (lambda: Path("a.csv").write_bytes(b"\xff\xfe\x00\x80"), "a.csv"),
    "no parquet": (lambda: Path("a.parquet").write_text("hello"), "a.parquet"),
    "words in parquet": (lambda: parquet_of(name=["x"] * 12), "a.parquet"),
    "gaps in parquet": (lambda: parquet_of(b=[None, 1.0] * 6), "a.parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_by_name(case, golden):
    write, data = WRONG[case]
    write()
    with pytest.raises(DataError) as caught:
        read_samples(data)
    assert data in str(caught.value)
    golden(f"train/{case.replace(' ', '-')}.txt", str(caught.value) + "\n")


@pytest.mark.parametrize(
    ("package", "data", "message"),
    [
        ("PIL", "photos", "Images need Pillow: pip install pillow"),
        ("pyarrow", "a.parquet", "Parquet files need pyarrow: pip install pyarrow"),
    ],
)
def test_a_missing_package_is_one_line(monkeypatch, package, data, message):
    write_images("photos", GRAY)
    Path("a.parquet").write_text("")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        read_samples(data)
    assert str(caught.value) == message


def test_a_file_of_the_name_digits_comes_first():
    write_images("digits", GRAY)
    assert len(read_samples("digits")) == 12
