"""Draw predictions and truths: masks with contours and names over the image, and grids.

A picture is (H,W,3) uint8 RGB. Memory is that of a few pictures, however many objects there are.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_masks
from torch import Tensor

from wsis.images.scale import resize_long_side

__all__ = [
    "Drawable",
    "Picture",
    "colour",
    "grid",
    "jpeg",
    "overlay",
    "overlay_panoptic",
    "picture_of",
    "stuff_colour",
]

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]

HUES = (0.98, 0.58, 0.12, 0.36, 0.78, 0.05, 0.50, 0.88, 0.24, 0.68)
"""Hues of the first ten classes, neighbours far apart."""
MAX_HIDDEN = 0.5
"""A name is left out where it would hide more than this fraction of an object, or another name."""
PAPER: Colour = (250, 250, 248)
INK: Colour = (30, 32, 36)
LINE = 22
"""Pixels from one line of a caption to the next."""


class Drawable(Protocol):
    """Objects of one image: a prediction, or a truth, which has `crowd` in place of `scores`."""

    @property
    def boxes(self) -> Tensor:
        """(N,4) xyxy."""

    @property
    def labels(self) -> Tensor:
        """(N,) 0-based class."""

    @property
    def masks(self) -> list[dict[str, Any]]:
        """N run-length masks, or none."""


class _Object(NamedTuple):
    """What is drawn of one object, in picture pixels."""

    box: Rectangle
    mask: dict[str, Any] | None
    colour: Colour
    texts: tuple[str, ...]
    """What may be written at it, the longest first."""
    score: float = 1.0
    outlined: bool = True
    """Stuff is not: its name is written where `box` is, the largest square inside it."""


def colour(label: int, instance: int = 0) -> Colour:
    """A vivid colour: the hue tells the class, the shade tells touching instances of it apart."""
    turn, place = divmod(label, len(HUES))
    hue = (HUES[place] + 0.045 * turn + 0.02 * (instance % 3 - instance % 2)) % 1
    value, saturation = ((1.0, 0.78), (0.80, 0.92), (1.0, 0.52), (0.62, 0.85))[instance % 4]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def stuff_colour(label: int) -> Colour:
    """A calm colour for a stuff class, 0-based."""
    red, green, blue = colorsys.hsv_to_rgb(
        (0.55 + 0.382 * label) % 1, 0.38, (0.72, 0.56, 0.86)[label % 3]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: Picture | Tensor,
    objects: Drawable,
    names: Sequence[str] = (),
    score_threshold: float = 0.0,
    long_side: int = 800,
    opacity: float = 0.45,
) -> Picture:
    """Draw objects over their image: a tinted mask with a contour, or a box, and a name.

    Args:
        image: (H,W,3) uint8 RGB, or the same as a (3,H,W) tensor.
        objects: what to draw; the masks are of the image's size.
        names: class names; "class 3" where there are none.
        score_threshold: predictions below this score are left out; if none reaches it, the best one
            is drawn with a question mark.
        long_side: pixels of the result's longer side; small images are enlarged, so that lines and
            letters stay crisp.
        opacity: of the tint, 0 to 1.
    """
    canvas, scale = _canvas(image, long_side)
    drawn = _objects(objects, names, score_threshold, scale)
    tops = [_tint(canvas, thing, opacity) for thing in drawn]
    return _write(canvas, drawn, tops, max(12, round(long_side / 45)))


def overlay_panoptic(
    image: Picture | Tensor,
    panoptic: Tensor,
    things: Sequence[str],
    stuff: Sequence[str] = (),
    long_side: int = 800,
    opacity: float = 0.55,
) -> Picture:
    """Draw a panoptic map over its image: things vivid and outlined, stuff calm, void dark grey.

    Args:
        image: (H,W,3) uint8 RGB, or the same as a (3,H,W) tensor.
        panoptic: (H,W,2) class and instance of each pixel, as in `Prediction.panoptic`.
        things: names of the thing classes; all of them, for classes beyond are stuff.
        stuff: names of the stuff classes.
        long_side: pixels of the result's longer side.
        opacity: of the tint, 0 to 1.
    """
    canvas, scale = _canvas(image, long_side)
    segments = _segments(panoptic.cpu().numpy(), len(things), [*things, *stuff], scale)
    void = _enlarged((panoptic[..., 0] < 0).cpu().numpy(), canvas)
    canvas[void] = (0.6 * cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[void, None]).astype(np.uint8)
    tops = [_tint(canvas, segment, opacity) for segment in segments]
    return _write(canvas, segments, tops, max(12, round(long_side / 45)))


def grid(
    pictures: Sequence[Picture],
    columns: int = 4,
    captions: Sequence[str] = (),
    gap: int = 12,
    heading: str = "",
) -> Picture:
    """Put pictures in rows on one sheet, in cells of the largest one's size, with captions below.

    Captions may have several lines. Of a line that is too long, the middle is left out.

    Raises:
        ValueError: no picture.
    """
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    above, cell = 60 * bool(heading), height + gap + LINE * lines + 8 * bool(lines)
    size = columns * (width + gap) + gap, above + rows * cell + gap
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_line(draw, heading, (size[0] / 2, above / 2 + gap / 2), size[0] - 2 * gap, 28)
    for k, picture in enumerate(pictures):
        x, y = gap + k % columns * (width + gap), above + gap + k // columns * cell
        fit = min(width / picture.shape[1], height / picture.shape[0])
        small = Image.fromarray(picture).resize(
            (round(picture.shape[1] * fit), round(picture.shape[0] * fit))
        )
        sheet.paste(small, (x + (width - small.width) // 2, y + (height - small.height) // 2))
        for i, line in enumerate(captions[k].split("\n") if k < len(captions) else ()):
            middle = x + width / 2, y + height + LINE * (i + 0.5) + 6
            _write_line(draw, line, middle, width, 18)
    return np.array(sheet)


def jpeg(picture: Picture, quality: int = 88) -> bytes:
    """Encode a picture as JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(
        file, "JPEG", quality=quality, subsampling=0
    )  # else red contours smear
    return file.getvalue()


def picture_of(image: Picture | Tensor) -> Picture:
    """Return a (3,H,W) uint8 RGB tensor on any device, or a picture, as a picture."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(image)


def _canvas(image: Picture | Tensor, long_side: int) -> tuple[Picture, float]:
    """Return a copy of the image to draw on, and its scale."""
    pixels = picture_of(image)
    return resize_long_side(pixels, long_side), long_side / max(pixels.shape[:2])


def _enlarged(mask: NDArray[Any], canvas: Picture) -> NDArray[np.bool_]:
    """Return a mask (H,W) at the canvas' size, with smooth edges."""
    soft = cv2.resize(
        mask.astype(np.uint8) * np.uint8(255), canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(soft > 127)


def _segments(
    panoptic: NDArray[np.int32], things: int, names: Sequence[str], scale: float
) -> list[_Object]:
    """Return what to draw of a panoptic map: stuff first, then things, large ones first."""
    drawn = []
    seen: dict[int, int] = {}
    keys = (
        panoptic[..., 0].astype(np.int64) << 32 | panoptic[..., 1]
    )  # one number a segment sorts faster than two
    for key in np.unique(keys[keys >= 0]).tolist():
        label, mask = key >> 32, np.asfortranarray(keys == key, np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if label >= things:
            depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = divmod(int(depth.argmax()), mask.shape[1])
            x, y, width, height = (
                round(x - depth.max()),
                round(y - depth.max()),
                *[round(2 * depth.max())] * 2,
            )
        box = (x * scale, y * scale, (x + width) * scale, (y + height) * scale)
        tint = colour(label, seen.get(label, 0)) if label < things else stuff_colour(label - things)
        seen[label] = seen.get(label, 0) + 1
        name = names[label] if label < len(names) else f"class {label}"
        thing = _Object(box, rle_masks.encode(mask), tint, (name,), outlined=label < things)
        drawn.append(thing)
    return sorted(drawn, key=lambda segment: (segment.outlined, -_area(segment.box)))


def _objects(
    objects: Drawable, names: Sequence[str], score_threshold: float, scale: float
) -> list[_Object]:
    """Return what to draw, large objects first, so that small ones lie on top."""
    labels, boxes = objects.labels.tolist(), (objects.boxes * scale).tolist()
    scores = objects.scores.tolist() if hasattr(objects, "scores") else [None] * len(labels)
    crowd = objects.crowd.tolist() if hasattr(objects, "crowd") else [False] * len(labels)
    sure = [score is None or score >= score_threshold for score in scores]
    best = None if any(sure) else _best(scores)
    seen: dict[int, int] = {}
    drawn = []
    for i, (label, box, score) in enumerate(zip(labels, boxes, scores, strict=True)):
        if not sure[i] and i != best:
            continue
        name = names[label] if label < len(names) else f"class {label}"
        mark = "?" * (i == best)
        texts = (name,) if score is None else (f"{name} {score:.2f}{mark}", name + mark)
        if crowd[i]:
            texts = (f"{name} (crowd)",)
        mask = objects.masks[i] if objects.masks else None
        tint = colour(label, seen.get(label, 0))
        drawn.append(_Object(tuple(box), mask, tint, texts, 1.0 if score is None else score))
        seen[label] = seen.get(label, 0) + 1
    return sorted(drawn, key=lambda thing: -_area(thing.box))


def _best(scores: Sequence[Any]) -> int | None:
    """Return the position of the highest score; None if no score is a number."""
    known = [i for i, score in enumerate(scores) if not math.isnan(score)]
    return max(known, key=scores.__getitem__) if known else None


def _tint(canvas: Picture, thing: _Object, opacity: float) -> Point:
    """Draw a mask's tint and contour, or a box, into the canvas; gives the object's top."""
    width = max(1, round(max(canvas.shape) / 400))
    x1, y1, x2, y2 = (round(v) for v in thing.box)
    if thing.mask is None:
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), thing.colour, width + 1, cv2.LINE_AA)
        return (x1 + x2) / 2, y1
    mask = _enlarged(rle_masks.decode([thing.mask])[..., 0], canvas).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return (x1 + x2) / 2, y1
    window, inside = canvas[y : y + h, x : x + w], mask[y : y + h, x : x + w].astype(bool)
    window[inside] = (window[inside] * (1 - opacity) + np.array(thing.colour) * opacity).astype(
        np.uint8
    )
    if not thing.outlined:
        return (x1 + x2) / 2, (y1 + y2) / 2
    lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.polylines(
        canvas, lines, True, (255, 255, 255), width + 2, cv2.LINE_AA
    )  # light rim: seen on any ground
    cv2.polylines(canvas, lines, True, thing.colour, width, cv2.LINE_AA)
    return x + float(inside[0].nonzero()[0].mean()), y


def _write(canvas: Picture, drawn: Sequence[_Object], tops: Sequence[Point], size: int) -> Picture:
    """Write names on plates of their colours, the surest and then the smallest objects first.

    Where there is no room for a name with its score, there may be for the name alone; otherwise it
    is left out, except the first.
    """
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    boxes = [thing.box for thing in drawn if thing.outlined]
    placed: list[Rectangle] = []
    named = zip(drawn, tops, strict=True)
    for thing, top in sorted(named, key=lambda pair: (-pair[0].score, _area(pair[0].box))):
        choices = []
        for text in thing.texts:
            plate = font.getlength(text) + size * 0.7, size * 1.35
            choices.append((*_place(thing.box, top, plate, image.size, placed, boxes), text))
        fitting = [choice for choice in choices if choice[1] <= MAX_HIDDEN]
        if not fitting and placed:
            continue
        spot, _, text = (fitting or choices)[0]
        placed.append(spot)
        x1, y1, x2, y2 = spot
        draw.rounded_rectangle(spot, size * 0.28, thing.colour)
        light = 0.299 * thing.colour[0] + 0.587 * thing.colour[1] + 0.114 * thing.colour[2]
        ink = INK if light > 140 else PAPER
        draw.text(((x1 + x2) / 2, (y1 + y2) / 2), text, ink, font, "mm")
    return np.array(image)


def _write_line(
    draw: ImageDraw.ImageDraw, text: str, middle: Point, width: float, size: int
) -> None:
    """Write a line of letters of a size around a point; if it is too long, without its middle."""
    font = ImageFont.load_default(size)
    kept, shown = len(text), text
    while kept and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(middle, shown, INK, font, "mm")


def _place(
    box: Rectangle,
    top: Point,
    plate: Point,
    size: tuple[int, int],
    placed: Sequence[Rectangle],
    boxes: Sequence[Rectangle],
) -> tuple[Rectangle, float]:
    """Choose the place at an object, inside the picture, that hides least, and how much it hides.

    Args:
        box: of the object.
        top: its highest point.
        plate: width and height of what is placed.
        size: of the picture.
        placed: plates that are there already.
        boxes: of all objects.
    """
    (x1, y1, x2, y2), (width, height) = box, plate
    centred, middle = top[0] - width / 2, (x1 + x2 - width) / 2
    corners = [
        (centred, top[1] - height - 4),
        (centred, top[1] + 4),
        (middle, (y1 + y2 - height) / 2),
        (x1, y1 - height - 4),
        (middle, y2 + 4),
        (x2 + 4, (y1 + y2 - height) / 2),
        (x1 - width - 4, (y1 + y2 - height) / 2),
        (x1, y2 + 4),
        (x2 - width, y2 - height - 4),
        *((middle, y1 + (k + 0.5) * height) for k in range(8)),
    ]
    candidates = []
    for x, y in corners:
        x, y = min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))
        candidates.append((x, y, x + width, y + height))
    hidden = [_hidden(candidate, placed, boxes) for candidate in candidates]
    least = min(range(len(candidates)), key=hidden.__getitem__)
    return candidates[least], hidden[least]


def _hidden(plate: Rectangle, placed: Sequence[Rectangle], boxes: Sequence[Rectangle]) -> float:
    """Return the largest fraction of an object that a plate hides; 1 or more on another plate."""
    names = [1 + _common(plate, other) for other in placed if _common(plate, other)]
    return max([_common(plate, box) / max(_area(box), 1.0) for box in boxes] + names, default=0.0)


def _area(box: Rectangle) -> float:
    return _common(box, box)


def _common(a: Rectangle, b: Rectangle) -> float:
    """Area that two rectangles share, square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
