"""Files of images or numbers, read into samples.

Owns: which file is read how, and the errors that name the file. Must not train. Read next: `tabular.py`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tied.study.digits import CREDIT, raw
from tied.study.train.errors import DataError, MissingPackageError
from tied.study.train.plan import DIGITS
from tied.study.train.samples import Samples
from tied.study.train.tabular import read_csv, read_parquet

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_KEYS, LABEL_KEYS = ("images", "data", "x", "X"), ("labels", "label", "target", "y")


def read_samples(data: str) -> Samples:
    """Read what `data` names: `"digits"`, a folder of images, or a file.

    - a folder: all images below it; if they lie in subfolders, the names of these are the labels;
    - `.npy`: one array, see `Samples.of`; `.npz`: an array, and labels if there is a second one called `labels` or `y`;
    - `.csv`, `.tsv`, `.parquet`: columns of numbers; a column called `label` (`class`, `target`) gives the labels.

    Raises:
        DataError: the file is missing, cannot be read, or holds nothing that can be trained on.
        MissingPackageError: images without Pillow, or parquet without pyarrow.

    Example:
        >>> digits = read_samples("digits")
        >>> digits.values.shape, len(digits.names)
        (torch.Size([1797, 1, 8, 8]), 10)
    """
    path = Path(data)
    if data == DIGITS and not path.exists():
        return Samples.of(*raw(), source=f"digits ({CREDIT})")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() not in READERS:
        raise _unknown(path)
    try:
        return READERS[path.suffix.lower()](path)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def unreadable(path: Path, reason: str) -> DataError:
    """Word the error for a file that is not there, or broken."""
    return DataError(
        f"{path} cannot be read.",
        found=reason,
        expected="a file that is there and whole",
        fix="check the path, and how the file was written",
    )


def _unknown(path: Path) -> DataError:
    there = f"a file of type '{path.suffix}'" if path.exists() else "no such file or folder"
    return DataError(
        f"{path} is nothing that can be read.",
        found=there,
        expected="digits, a folder of images, or a file of type .npy, .npz, .csv, .tsv or .parquet",
        fix="check the path; or convert: numpy.save('data.npy', array)",
    )


# Arrays


def _read_npy(path: Path) -> Samples:
    array = _load(path)
    if not isinstance(array, np.ndarray):
        array.close()
        raise unreadable(path, "an archive of arrays, by its content")
    return Samples.of(array, source=str(path))


def _read_npz(path: Path) -> Samples:
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise unreadable(path, "a single array, by its content")
    with archive:
        arrays = {name: _member(path, archive, name) for name in archive.files}
    labels = next((arrays.pop(name) for name in LABEL_KEYS if name in arrays), np.empty(0))
    wanted = [name for name in IMAGE_KEYS if name in arrays] or list(arrays)
    if len(wanted) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(
            f"{path} does not say which of its arrays is the data.",
            found=shapes or "no array",
            expected="one array, or one called images, data or x; and, if you like, one called labels or y",
            fix="numpy.savez('data.npz', images=images, labels=labels)",
        )
    return Samples.of(arrays[wanted[0]], labels.reshape(-1), source=str(path))


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(path, _reason(error)) from None


def _member(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, f"{name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Say why numpy did not read a file; where it advises unpickling, which runs what the file says, we do not."""
    return "no array of numbers" if "pickle" in str(error) else str(error)


# Folders of images


def _read_folder(folder: Path) -> Samples:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not files:
        raise _no_pictures(folder)
    images = [_pixels(path) for path in files]
    _alike(files, images)
    colored = max(image.shape[2] for image in images)
    stacked = np.stack([np.broadcast_to(image, (*image.shape[:2], colored)) for image in images])
    return Samples.of(stacked, _classes(folder, files), source=str(folder))


def _no_pictures(folder: Path) -> DataError:
    kinds = Counter(path.suffix or "no suffix" for path in folder.rglob("*") if path.is_file())
    found = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(4))
    return DataError(
        f"{folder} holds no images.",
        found=found or "an empty folder",
        expected=f"files of type {', '.join(sorted(PICTURES))}",
        fix="name the folder that holds the images",
    )


def _pixels(path: Path) -> np.ndarray:
    """Read an image as `(height, width, 1 or 3)`: gray as it is, everything else as red, green, blue."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingPackageError("Images need Pillow: pip install pillow") from None
    try:
        with Image.open(path) as image:
            return _array(image)
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        raise unreadable(path, str(error).replace(str(path), path.name)) from None


def _array(image: Image) -> np.ndarray:
    gray = image.mode in {"1", "L", "F", "I", "LA"} or image.mode.startswith("I;16")
    made = image.convert("L" if image.mode in {"1", "LA"} else image.mode) if gray else image.convert("RGB")
    array = np.asarray(made, dtype=np.float32)
    return array[:, :, None] if array.ndim == 2 else array


def _alike(files: Sequence[Path], images: Sequence[np.ndarray]) -> None:
    """Refuse images of different sizes."""
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    odd = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is None:
        return
    common = Counter(sizes).most_common(1)[0][0]
    raise DataError(
        f"The images of {files[0].parent} have different sizes.",
        found=f"{files[0].name} is {_size(sizes[0])}, {files[odd].name} is {_size(sizes[odd])}",
        expected="one size for all, width × height",
        fix=f"resize each: PIL.Image.open(path).resize({common}).save(path)",
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _classes(folder: Path, files: Sequence[Path]) -> list[str]:
    """Return the names of the subfolders that the images lie in; nothing if some lie in none."""
    inside = [path.relative_to(folder).parts for path in files]
    return [parts[0] for parts in inside] if all(len(parts) > 1 for parts in inside) else []


# Tables


def _read_table(path: Path) -> Samples:
    table = read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    return Samples.of(table.values, table.labels, source=str(path))


READERS = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_table, ".tsv": _read_table, ".parquet": _read_table}
