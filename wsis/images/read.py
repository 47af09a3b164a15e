"""Read pictures: whatever a camera or scanner wrote becomes 8-bit RGB, or an error of one line."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from wsis.errors import InputError

__all__ = [
    "SUFFIXES",
    "as_pixels",
    "image_size",
    "pictures",
    "read_grey",
    "read_image",
    "read_labels",
    "read_numbers",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
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


def pictures(folder: Path) -> list[Path]:
    """List the picture files anywhere in a folder, without hidden ones (a Mac's `._a.jpg`)."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image as (3,H,W) uint8 RGB, turned upright by its EXIF orientation.

    Transparent parts become white.

    Args:
        path: any format that Pillow reads: grey, palette, CMYK and 16-bit images too.
        size: (height, width) that the annotations are drawn on. An image that has it only before it
            is turned stays unturned.

    Raises:
        InputError: missing, empty or broken file, or another size.
    """
    try:
        with Image.open(path) as image:
            upright = _upright(image, size)
            pixels = np.array(_rgb(upright))
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if size is not None and pixels.shape[:2] != tuple(size):
        found, wanted = f"{pixels.shape[1]} x {pixels.shape[0]}", f"{size[1]} x {size[0]}"
        raise InputError(
            f"{path} is {found} pixels but annotated as {wanted}; use the image that was annotated"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def as_pixels(image: Any) -> NDArray[np.uint8]:
    """Return an image as (H,W,3) uint8 RGB that can be written to.

    Args:
        image: a file, a PIL image, (H,W,3) uint8 RGB, or a (3,H,W) uint8 RGB tensor.

    Raises:
        InputError: not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        image = read_image(Path(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().movedim(0, -1).numpy()
    elif isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
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
    """Give an image's upright (height, width) from its header.

    Raises:
        InputError: missing or empty file, or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    return (width, height) if sideways else (height, width)


def read_grey(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Read a grey picture, stored in whatever way, as (H,W) uint8.

    Raises:
        InputError: missing, empty or broken file, or a picture with colours.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I")
            pixels = np.array(
                image if image.mode == "L" else _rgb(image) if deep else image.convert("RGB")
            )
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise InputError(f"{path} has colours; it must be black and white")
    return pixels[..., 0]


def read_labels(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Read a label map (palette or grey png) as (H,W) uint8 without applying its colours.

    Raises:
        InputError: missing, empty or broken file, or a colour image.
    """
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if labels.ndim != 2:
        raise InputError(
            f"{path} is a colour image; a label map has one palette index or grey value per pixel"
        )
    return labels.astype(np.uint8)


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
    try:
        with Image.open(path) as image:
            colours = np.array(image)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, or 32 that hold 16: Pillow would clip at 255
        values = np.asarray(image, np.float32)
        return Image.fromarray(
            (values / 257 if values.max(initial=0) > 255 else values).round().astype(np.uint8)
        ).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _unreadable(path: Path, error: BaseException) -> InputError:
    if not Path(path).exists():
        return InputError(f"no image {path}; put it there or take it off the list")
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return InputError(f"{path} is empty (0 bytes); fetch it again or take it off the list")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"cannot read image {path} ({reason}); fetch it again or take it off the list"
    )
