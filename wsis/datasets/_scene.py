"""Paint the generated scenes: the difficulties of weak supervision, in 256 x 256 pixels.

A thing is a body (outline and material, each shared by two classes) with a small mark that only its
class has, so a classifier prefers the mark to the object. Things of a class stand in touching
groups, occlude one another and are 24 to 160 px long; half of the classes nearly always stand on
the same stuff.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SALIENT",
    "SIZE",
    "STUFF",
    "THINGS",
    "Kind",
    "Scene",
    "SceneSettings",
    "paint_salient",
    "paint_scene",
]

Array = Any  # float arrays, since numpy's operators return Any
Colour = tuple[int, int, int]
SIZE = 256


class Kind(NamedTuple):
    """The appearance of a class of objects."""

    name: str
    outline: str
    colour: Colour
    material: int
    mark: tuple[Colour, Colour]
    pattern: str


_RED = (214, 60, 50)
_BLUE = (40, 80, 200)
_YELLOW = (250, 200, 40)
_GREEN = (40, 150, 70)
_PINK = (200, 60, 170)
_WHITE = (250, 240, 235)
_BLACK = (30, 30, 35)
THINGS = (
    Kind("red-striped egg", "egg", (176, 128, 92), 0, (_RED, _WHITE), "stripes"),
    Kind("blue-striped egg", "egg", (176, 128, 92), 0, (_BLUE, _WHITE), "stripes"),
    Kind("red-checked box", "box", (150, 150, 160), 1, (_RED, _BLACK), "checks"),
    Kind("yellow-checked box", "box", (150, 150, 160), 1, (_YELLOW, _BLACK), "checks"),
    Kind("green-ringed pear", "pear", (196, 178, 120), 2, (_GREEN, _WHITE), "rings"),
    Kind("pink-ringed pear", "pear", (196, 178, 120), 2, (_PINK, _BLACK), "rings"),
    Kind("blue-dotted flower", "flower", (120, 92, 112), 3, (_BLUE, _YELLOW), "dots"),
    Kind("green-dotted flower", "flower", (120, 92, 112), 3, (_GREEN, _BLACK), "dots"),
)
SALIENT = (
    Kind("orange cushion", "cushion", (206, 120, 60), 3, (_WHITE, _BLACK), "dots"),
    Kind("teal gear", "gear", (60, 140, 140), 2, (_YELLOW, _WHITE), "checks"),
    Kind("violet bean", "bean", (130, 100, 180), 1, (_GREEN, _YELLOW), "stripes"),
    Kind("cream star", "star", (228, 214, 190), 0, (_BLUE, _BLACK), "rings"),
)
STUFF = ("grass", "water", "sand")
_STUFF_COLOURS = ((96, 140, 62), (88, 134, 176), (206, 190, 158))
_HOME = {0: 0, 1: 1, 4: 2, 7: 1}  # thing -> the stuff it nearly always stands on
_SMALLEST, _LARGEST = 24, 160


@dataclass(frozen=True)
class SceneSettings:
    """Difficulty of a scene; with the defaults, classes are learned from tags in minutes.

    Args:
        mark: radius of the class's mark, in half lengths of the object.
        rotation: maximum rotation of an object in either direction, in radians.
        co_occurrence: fraction of scenes in which a class with a home stuff stands on it.
        touch: probability of a second object in a group, and of a third one.
    """

    mark: float = 0.3
    rotation: float = 0.3
    co_occurrence: float = 0.9
    touch: float = 0.5


class Scene(NamedTuple):
    """A painted image and its annotations."""

    image: NDArray[np.uint8]
    """(256,256,3) RGB."""
    owner: NDArray[np.int32]
    """(256,256): 0 for background, k + 1 for visible pixels of object k."""
    labels: list[int]
    """Class of each object."""
    stuff: NDArray[np.uint8]
    """(256,256): stuff class, 255 at objects."""


def paint_scene(
    rng: np.random.Generator, settings: SceneSettings, main: int, weights: NDArray[np.float64]
) -> Scene:
    """Paint groups of class `main`, and possibly of a second class drawn with `weights`."""
    at_home = main in _HOME and rng.random() < settings.co_occurrence
    ground = _HOME[main] if at_home else int(rng.integers(len(STUFF)))
    image, stuff = _paint_ground(rng, ground)
    canvas = _Canvas(image)
    classes = [main]
    while len(classes) < 2 and rng.random() < 0.55:
        other = int(rng.choice(len(THINGS), p=weights))
        fits = _HOME.get(other, ground) == ground or rng.random() >= settings.co_occurrence
        classes += [other] if fits and other != main else []
    for label in classes:
        _paint_group(rng, canvas, label, settings)
    stuff[canvas.owner > 0] = 255
    return Scene(_develop(rng, image), canvas.owner, canvas.labels, stuff)


def paint_salient(rng: np.random.Generator, kind: int) -> Scene:
    """Paint one large, whole object of `SALIENT[kind]`, as in salient-object data sets."""
    image, stuff = _paint_ground(rng, int(rng.integers(len(STUFF))))
    canvas = _Canvas(image)
    length = rng.uniform(70, 190)
    painted = _paint_object(rng, SALIENT[kind], length, SceneSettings(rotation=np.pi))
    x, y = rng.uniform(0.5 * length, SIZE - 0.5 * length, 2)
    canvas.place(*painted, float(x), float(y), kind)
    stuff[canvas.owner > 0] = 255
    return Scene(_develop(rng, image), canvas.owner, canvas.labels, stuff)


class _Canvas:
    """An unfinished image, with the owner of each pixel and the visible area of each object."""

    def __init__(self, image: Array) -> None:
        self.image, self.owner = image, np.zeros((SIZE, SIZE), np.int32)
        self.labels: list[int] = []
        self._area: list[int] = []
        self._visible: list[int] = []

    def place(self, colours: Array, mask: Array, x: float, y: float, label: int) -> bool:
        """Paste an object centred at (x, y), unless it or an older one would be mostly hidden.

        Returns:
            Whether it was pasted.
        """
        side = len(mask)
        left, top = int(x - side / 2), int(y - side / 2)
        (y1, y2), (x1, x2) = (np.clip((start, start + side), 0, SIZE) for start in (top, left))
        there, here = np.s_[y1:y2, x1:x2], np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        shown = mask[here]
        if min(shown.shape) < 8 or shown.sum() < 0.6 * mask.sum():
            return False
        hidden = np.bincount(self.owner[there][shown], minlength=len(self.labels) + 1)[1:]
        visible = np.array(self._visible, int) - hidden
        if (visible < 0.5 * np.array(self._area)).any():
            return False
        self._visible = [*visible.tolist(), int(shown.sum())]
        self._area.append(int(mask.sum()))
        self.labels.append(label)
        self.owner[there][shown] = len(self.labels)
        self.image[there][shown] = colours[here][shown]
        return True


def _paint_group(
    rng: np.random.Generator, canvas: _Canvas, label: int, settings: SceneSettings
) -> None:
    """Paint one to four objects of one class and similar size, mostly touching each other."""
    base = float(np.exp(rng.uniform(np.log(_SMALLEST + 2), np.log(_LARGEST))))
    chances = (1.0, settings.touch, settings.touch * (base < 90), 0.4 * (base < 45))
    before: tuple[float, float, float] | None = None
    for _ in range(int(sum(rng.random() < chance for chance in chances))):
        for _attempt in range(12):
            length = float(np.clip(base * rng.uniform(0.8, 1.25), _SMALLEST + 2, _LARGEST))
            if before is not None and rng.random() < 0.8:
                angle, distance = rng.uniform(0, 2 * np.pi), 0.4 * (length + before[2])
                x, y = before[0] + distance * np.cos(angle), before[1] + distance * np.sin(angle)
            else:
                x, y = rng.uniform(0.3 * length, SIZE - 0.3 * length, 2)
            if canvas.place(*_paint_object(rng, THINGS[label], length, settings), x, y, label):
                before = (x, y, length)
                break


def _paint_object(
    rng: np.random.Generator, kind: Kind, length: float, settings: SceneSettings
) -> tuple[Array, Array]:
    """Paint an object `length` px long; return colours (n,n,3) float32 and mask (n,n)."""
    radius, side = length / 2, int(np.ceil(length)) + 5
    y, x = np.mgrid[:side, :side].astype(np.float32) - (side - 1) / 2
    faces = 1 if rng.random() < 0.5 else -1
    turn = rng.uniform(-settings.rotation, settings.rotation)
    cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
    u, v = faces * cos * x + sin * y, cos * y - faces * sin * x
    angle = np.arctan2(v, u)
    reach = _outline(kind.outline, angle) * (
        1 + 0.05 * np.sin(2 * angle + rng.uniform(0, 2 * np.pi))
    )
    depth = np.hypot(u, v) / reach  # 0 at the centre, 1 at the outline
    tone = np.float32(kind.colour + rng.normal(0, 10, 3) + rng.normal(0, 10))
    colours = tone + _cut(rng, _textures()[1][kind.material], side, side)[..., None]
    across = u - 0.45
    inside = (across**2 + v**2 < settings.mark**2) & (depth < 0.93)
    marks = np.asarray(kind.mark + rng.normal(0, 6, 3), np.float32)
    colours[inside] = marks[
        1 - _pattern(kind.pattern, across[inside], v[inside], 3.2 / settings.mark)
    ]
    lamp = 1 - 0.13 / (radius * 1.41) * (x + y)  # light from the upper left
    lamp[depth > 1 - min(0.3, 2.2 / radius)] *= 0.72
    return colours * lamp[..., None], depth < 1


def _outline(name: str, angle: Array) -> Array:
    """Return the radius of an outline in each direction."""
    match name:
        case "egg":
            return 1 / np.sqrt(np.cos(angle) ** 2 + (np.sin(angle) / 0.62) ** 2)
        case "box":
            return 0.88 * (np.abs(np.cos(angle)) ** 5 + np.abs(np.sin(angle) / 0.75) ** 5) ** (
                -1 / 5
            )
        case "pear":
            return 0.80 + 0.20 * np.cos(3 * angle)
        case "flower":
            return 0.82 + 0.18 * np.cos(5 * angle)
        case "cushion":
            return 0.86 + 0.14 * np.cos(4 * angle + np.pi)
        case "gear":
            return 0.88 + 0.08 * np.sign(np.cos(9 * angle))
        case "bean":
            return 0.62 + 0.30 * np.cos(angle) ** 2 + 0.08 * np.sin(angle)
        case "star":
            return 0.52 + 0.48 * np.abs(np.cos(2.5 * angle)) ** 1.5
    raise ValueError(f"no outline {name!r}")


def _pattern(name: str, u: Array, v: Array, frequency: float) -> Array:
    """Return 1 where a pattern has the first of its two colours, 0 where it has the second."""
    match name:
        case "stripes":
            shown = np.sin(2.2 * frequency * u + 1) > 0
        case "checks":
            shown = np.sin(2 * frequency * u) * np.sin(2 * frequency * v) > 0
        case "rings":
            shown = np.sin(2.6 * frequency * np.hypot(u, v)) > 0
        case "dots":
            shown = np.sin(2.4 * frequency * u) + np.sin(2.4 * frequency * v) > 0.5
        case _:
            raise ValueError(f"no pattern {name!r}")
    return shown.astype(int)


def _paint_ground(rng: np.random.Generator, main: int) -> tuple[Array, NDArray[np.uint8]]:
    """Paint one stuff class, in 60 % of scenes with another one above a wavy line."""
    stuff = np.full((SIZE, SIZE), main, np.uint8)
    if rng.random() < 0.6:
        wave = np.sin(np.arange(SIZE) / rng.uniform(18, 50) + rng.uniform(0, 2 * np.pi))
        line = rng.uniform(0.15, 0.4) * SIZE + rng.uniform(4, 14) * wave
        stuff[np.arange(SIZE)[:, None] < line] = (main + rng.integers(1, len(STUFF))) % len(STUFF)
    image = np.empty((SIZE, SIZE, 3), np.float32)
    for kind in np.unique(stuff):
        tone = np.float32(_STUFF_COLOURS[kind] + rng.normal(0, 8, 3))
        here = stuff == kind
        image[here] = (tone + _cut(rng, _textures()[0][kind], SIZE, SIZE)[..., None])[here]
    return image, stuff


def _develop(rng: np.random.Generator, image: Array) -> NDArray[np.uint8]:
    """Add the blur and noise of a camera."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    photo: NDArray[np.float32] = cv2.GaussianBlur(image, (0, 0), 0.7) + 4 * noise
    return np.clip(photo, 0, 255).astype(np.uint8)


@functools.cache
def _textures(side: int = 640) -> tuple[list[Array], list[Array]]:
    """Return the textures of stuff and of materials, which are the same for every seed."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    noise = functools.partial(_noise, rng, side)
    grass, sand = 13 * noise(3) + 9 * noise(14), 9 * noise(2) + 8 * noise(60)
    water = 12 * np.sin(y / 3.2 + 2 * noise(24)) + 6 * noise(40)
    materials = [
        7 * noise(4),
        8 * np.sin((x + y) / 2.6),
        9 * noise(9),
        10 * np.sin(x / 2.4) * np.sin(y / 2.4),
    ]
    return [grass, water, sand], materials


def _noise(rng: np.random.Generator, side: int, cell: int) -> Array:
    coarse = rng.standard_normal((max(side // cell, 2) + 2,) * 2).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def _cut(rng: np.random.Generator, texture: Array, height: int, width: int) -> Array:
    top, left = rng.integers(texture.shape[0] - height), rng.integers(texture.shape[1] - width)
    return texture[top : top + height, left : left + width]
