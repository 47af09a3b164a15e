"""Read pictures: whatever a camera or scanner wrote becomes 8-bit RGB, or an error of one line."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from wsis.errors import InputError
from wsis.machine import cores

__all__ = [
    "SUFFIXES",
    "as_pixels",
    "files_in",
    "image_size",
    "image_sizes",
    "other_files",
    "pictures",
    "read_grey",
    "read_image",
    "read_labels",
    "read_numbers",
    "read_sizes",
    "unreadable",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif"}
)
"""Of files that are taken for images where a folder is searched."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    EOFError,
    IndexError,
    Image.DecompressionBombError,
)
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112
_DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the numbers that cameras, scanners and microscopes store."""
_HEIC = re.compile(rb"....ftyp(hei[cfmsvx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
"""The first bytes of a HEIC file."""


def pictures(folder: Path) -> list[Path]:
    """List the picture files anywhere in a folder, without hidden ones (a Mac's `._a.jpg`).

    Links to folders are followed, each folder once.
    """
    return [path for path in files_in(folder) if path.suffix.lower() in SUFFIXES]


def other_files(folder: Path) -> list[Path]:
    """List the files that `pictures` leaves out because their suffix is not a picture's."""
    return [path for path in files_in(folder) if path.suffix.lower() not in SUFFIXES]


def files_in(folder: Path, without: Callable[[str], bool] = lambda name: False) -> list[Path]:
    """List the files anywhere in a folder, sorted, without hidden ones.

    Links to folders are followed, but no folder is visited twice. Links that lead nowhere are
    listed, so that whoever reads them says so.

    Args:
        folder: where to search.
        without: whether to leave out a folder of a name.
    """
    return sorted(_walk(folder, without, set()))


def _walk(folder: Path, without: Callable[[str], bool], visited: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    try:  # links last, so that files are named by their own place
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # entry.is_dir raises an error for a loop of links
            if not without(entry.name):
                yield from _walk(Path(entry.path), without, visited)
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield Path(entry.path)


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image as (3,H,W) uint8 RGB, turned upright by its EXIF orientation.

    Transparent parts become white. Of an animation the first picture is read.

    Numbers that are not 8 bits become so by rules that do not stretch an image by its own range,
    as images of one kind must stay comparable: fractions from 0 to 1 are multiplied by 255, and
    other numbers divided by the range of the fewest of 8, 10, 12, 14 and 16 bits that hold the
    largest of them, because files of 16 bits do not say how many of them a camera filled. For
    numbers below 0 (CT) and above 16 bits there is no such rule, and they are refused.

    Args:
        path: any format that Pillow reads, in any of its modes; HEIC with the extra `heic`.
        size: (height, width) that the annotations are drawn on. An image that has it only before it
            is turned stays unturned.

    Raises:
        InputError: missing, empty or broken file, another size, or numbers that are refused.
    """
    with _opened(path) as image:
        pixels = np.array(_rgb(_upright(image, size), str(path)))
    if size is not None and pixels.shape[:2] != tuple(size):
        found, wanted = f"{pixels.shape[1]} x {pixels.shape[0]}", f"{size[1]} x {size[0]}"
        raise InputError(
            f"{path} is {found} pixels but annotated as {wanted}; use the image that was annotated"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def as_pixels(image: Any) -> NDArray[np.uint8]:
    """Return an image as (H,W,3) uint8 RGB that can be written to.

    Args:
        image: a file, a PIL image of any mode, (H,W,3) uint8 RGB, or a (3,H,W) uint8 RGB tensor.
            The numbers of a PIL image are converted like those of a file; it is not turned.

    Raises:
        InputError: not an image, or one whose numbers `read_image` refuses.
    """
    if isinstance(image, (str, os.PathLike)):
        image = read_image(Path(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().movedim(0, -1).numpy()
    elif isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "given from Python"
        with _plain_errors(Path(name)):  # a PIL image reads its file when it is used
            image = np.asarray(_rgb(image, name))
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"an image is a file, a PIL image, an array or a tensor, not {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"an image is (H,W,3) uint8 RGB, or (3,H,W) as a tensor, not {image.shape} "
            f"{image.dtype}"
        )
    return np.require(image, requirements=["C", "W"])  # copied if torch could not write to it


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's upright (height, width) from its header.

    Raises:
        InputError: missing or empty file, or no image.
    """
    return image_sizes(path)[0]


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return an image's (height, width) when it is upright, and as it is stored.

    Raises:
        InputError: missing or empty file, or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        sideways = False
        with suppress(OSError):  # a truncated png, whose EXIF may come last; reading it will tell
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    stored = height, width
    return (stored[::-1] if sideways else stored), stored


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | InputError]:
    """Read images and return the (height, width) of each, or why it cannot be read."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(_size, paths))


def unreadable(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return why images under `root` cannot be read, by name."""
    sizes = read_sizes([root / name for name in names])
    pairs = zip(names, sizes, strict=True)
    return {name: str(size) for name, size in pairs if isinstance(size, InputError)}


def _size(path: Path) -> tuple[int, int] | InputError:
    try:
        height, width = read_image(path).shape[1:]
    except InputError as error:
        return error
    return height, width


def read_grey(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Read a grey picture, stored in whatever way, as (H,W) uint8.

    Raises:
        InputError: missing, empty or broken file, or a picture with colours.
    """
    with _opened(path) as image:
        flat = image.convert("RGB") if image.has_transparency_data else image
        pixels = np.array(image if image.mode == "L" else _rgb(flat, str(path)))
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise InputError(f"{path} has colours; it must be black and white")
    return pixels[..., 0]


def read_labels(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Read a label map (palette or grey png) as (H,W) uint8 without applying its colours.

    Raises:
        InputError: missing, empty or broken file, a colour image, or labels beyond 255.
    """
    with _opened(path) as image:
        labels = np.array(image)
    if labels.ndim != 2:
        raise InputError(
            f"{path} is a colour image; a label map has one palette index or grey value per pixel"
        )
    eight: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = labels.astype(np.uint8)
    if (eight != labels).any():
        raise InputError(f"{path} has labels that are not whole numbers from 0 to 255; map them")
    return eight


def read_numbers(
    path: Path, size: tuple[int, int]
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Read the segment numbers (H,W) int32 of a COCO panoptic png: R + 256 G + 65536 B.

    Args:
        path: of the png.
        size: (height, width) of its image.

    Raises:
        InputError: missing, empty or broken file, no colour image, or another size.
    """
    with _opened(path) as image:
        colours = np.array(image)
    if colours.shape != (*size, 3):
        raise InputError(
            f"{path} is no RGB png of {size[1]} x {size[0]} pixels, the size of its image; fetch "
            "it again"
        )
    numbers: np.ndarray[tuple[int, int], np.dtype[np.int32]] = colours.astype(np.int32) @ np.array(
        [1, 256, 65536], np.int32
    )
    return numbers


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    if (
        sideways
        and size is not None
        and size[0] != size[1]
        and (image.height, image.width) == tuple(size)
    ):
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB by the rules of `read_image`."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip at 0 and 255
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "LAB":  # Pillow converts it with its colour management alone
        spaces = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return cast(Image.Image, ImageCms.profileToProfile(image, *spaces, outputMode="RGB"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Scale numbers (H,W) by the rules of `read_image`."""
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high < 2 ** _DEPTHS[-1]):  # NaN is refused, too
        raise InputError(
            f"image {name} has numbers from {low:g} to {high:g}, neither 0 to 1 nor 8 or 16 bits; "
            "convert it to 8 bits, all images of a kind by the same range"
        )
    fractions = values.dtype.kind == "f" and high <= 1
    top = 1 if fractions else next(2**d - 1 for d in _DEPTHS if high < 2**d)
    return (values * (255 / top)).clip(0, 255).round().astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _plain_errors(path), _open(path) as image:
        yield image


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises into an error of one line."""
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> Image.Image:
    if stat.S_ISFIFO(os.stat(path).st_mode):  # opening it would wait for a writer
        raise InputError(f"{path} is a pipe, which cannot be read twice; give a file")
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if not _is_heic(path):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f'{path} is a HEIC photo: pip install "wsis[heic]", or convert it to JPEG'
        ) from error
    register_heif_opener()
    return Image.open(path)


def _is_heic(path: Path) -> bool:
    """Tell by a file's content, since photos are renamed to .jpg without being converted."""
    with open(path, "rb") as file:
        return _HEIC.match(file.read(12)) is not None


def _unreadable(path: Path, error: BaseException) -> InputError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return InputError(f"no image {path}; put it there or take it off the list")
    if os.path.isfile(path) and os.path.getsize(path) == 0:  # pathlib's raises for a long name
        return InputError(f"{path} is empty (0 bytes); fetch it again or take it off the list")
    if isinstance(error, Image.DecompressionBombError):
        found, limit = re.findall(r"\d+", str(error))[:2]
        return InputError(
            f"{path} has {found} pixels, and at most {limit} are read; shrink it or cut it into "
            "tiles, as `vipsthumbnail FILE --size 6000` and `magick FILE -crop 4000x4000 TILE.png` "
            "do"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"cannot read image {path} ({reason}); fetch it again or take it off the list"
    )
