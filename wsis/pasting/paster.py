"""Paste foregrounds on training images while loading (EM-Paste, section 3.3), or write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor

from wsis.data.index import write_coco
from wsis.data.targets import cover_target, join_targets, keep_objects, target_of_masks
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.fingerprint import file_hash
from wsis.images.read import pictures, read_image
from wsis.nn.masks import run_lengths
from wsis.pasting.compose import Blend, Where, check_settings, compose
from wsis.pasting.pool import ForegroundPool, draw_foregrounds
from wsis.types import Index, Record, Sample, Target

if TYPE_CHECKING:
    from wsis.data.samples import Samples

__all__ = ["Own", "Paste", "Paster", "write_pasted"]

Own = Literal["annotate", "ignore", "nothing"]


@dataclass(frozen=True)
class Paste:
    """Settings of pasting foregrounds on training images.

    Args:
        foregrounds: Folder of a foreground pool.
        objects: Min and max number of objects pasted on an image.
        select: "uniform" draws foregrounds uniformly, "balanced" draws classes uniformly.
        where: "random" pastes anywhere, "space" in the largest free circle.
        blend: "gaussian", "poisson" or "none", or several, of which each object draws one.
        scale: Min and max factor on the foreground's own size.
        rotation: Maximum rotation in either direction, in degrees.
        least_area: Minimum box area of a foreground in square pixels.
        backgrounds: Backgrounds beside the training images: "none", "black" or a folder of images.
        share: Fraction of images that are pasted on such a background.
        own: The image's own objects: "annotate" keeps all but crowds, "ignore" turns them into
            crowds, "nothing" drops them.
    """

    foregrounds: Path
    objects: tuple[int, int] = (4, 4)
    select: Literal["uniform", "balanced"] = "uniform"
    where: Where = "random"
    blend: Blend | tuple[Blend, ...] = "gaussian"
    scale: tuple[float, float] = (0.3, 1.0)
    rotation: float = 30.0
    least_area: float = 700.0
    backgrounds: str = "none"
    share: float = 1 / 3
    own: Own = "annotate"

    def __post_init__(self) -> None:
        """Raise InputError for impossible values."""
        if (
            not 0 <= self.objects[0] <= self.objects[1]
            or not 0 <= self.share <= 1
            or self.own not in ("annotate", "ignore", "nothing")
        ):
            raise InputError(
                f"{self}: give objects from 0 up, the fewest first, a share in [0, 1], and a "
                "known `own`"
            )
        blends = (self.blend,) if isinstance(self.blend, str) else self.blend
        check_settings(self.where, blends, self.scale, self.rotation)

    def content(self) -> list[Any]:
        """Return all that the pasted images depend on, without paths."""
        pool = self.foregrounds / "foregrounds.json"
        pictures = [(path.name, path.stat().st_size) for path in self.pictures()]
        backgrounds = "folder" if pictures else self.backgrounds
        plain = asdict(replace(self, foregrounds=Path(), backgrounds=backgrounds))
        return [plain, file_hash(pool), pictures]

    def pictures(self) -> list[Path]:
        """Return the pictures to use as backgrounds beside the training images.

        Raises:
            InputError: the folder does not exist or has no pictures.
        """
        if self.backgrounds in ("none", "black"):
            return []
        folder = Path(self.backgrounds)
        files = pictures(folder)
        if not files:
            raise InputError(
                f'no pictures in {folder} for backgrounds; give "none", "black" or a folder of '
                "pictures"
            )
        return files


class Pasted(NamedTuple):
    """A sample with pasted foregrounds, and the source of each object."""

    sample: Sample
    sources: list[str]
    """File name of the image or foreground, for each object of the target."""


class Paster:
    """Pastes foregrounds on samples at random; it can be pickled for loader workers.

    Args:
        settings: settings of pasting.
        categories: names of the data's classes, which must equal the pool's.

    Raises:
        InputError: there is no pool, it has no foreground large enough or other classes, or there
            are no backgrounds.
    """

    def __init__(self, settings: Paste, categories: Sequence[str]) -> None:
        self.settings = settings
        self.pool = ForegroundPool(settings.foregrounds, settings.least_area)
        # an array, so that workers share its memory pages
        self.backgrounds = np.array([str(path) for path in settings.pictures()])
        if self.pool.categories != list(categories):
            raise InputError(
                f"{settings.foregrounds} has foregrounds of {', '.join(self.pool.categories)}; "
                f"the data has the classes {', '.join(categories)}; make foregrounds of this data"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Paste on a sample with masks; equal generators give identical results."""
        return self.paste(sample, rng).sample

    def content(self) -> list[Any]:
        """Return all that pasted images depend on, without paths."""
        return self.settings.content()

    def paste(self, sample: Sample, rng: np.random.Generator) -> Pasted:
        """Paste on a sample, and return it with the source of each object."""
        settings = self.settings
        sources = [sample["path"].name] * len(sample["target"]["boxes"])
        sample = self._on_other_background(sample, rng)
        own = sample["target"]
        numbers = draw_foregrounds(self.pool.labels, settings.objects, rng, settings.select)
        foregrounds = [self.pool.draw(number) for number in numbers]
        composed = compose(
            sample["image"],
            [image for image, _ in foregrounds],
            [mask for _, mask in foregrounds],
            settings.where,
            settings.blend,
            rng,
            settings.scale,
            settings.rotation,
            own["masks"][~own["crowd"]],
        )
        covered = (
            composed.masks.any(0)
            if len(composed.masks)
            else torch.zeros(sample["image"].shape[1:], dtype=torch.bool)
        )
        kept, remaining = self._own(own, covered)
        visible = composed.masks.flatten(1).any(1)
        labels = torch.from_numpy(self.pool.labels[numbers])[visible]
        target = join_targets(remaining, target_of_masks(own, composed.masks[visible], labels))
        sources = [source for source, k in zip(sources, kept.tolist(), strict=False) if k]
        sources += [self.pool.file(number) for number in numbers[visible.numpy()]]
        return Pasted({**sample, "image": composed.image, "target": target}, sources)

    def _on_other_background(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, or with probability `share` a background without any objects."""
        if self.settings.backgrounds == "none" or rng.random() >= self.settings.share:
            return sample
        path = Path(rng.choice(self.backgrounds)) if len(self.backgrounds) else Path("black")
        image = read_image(path) if len(self.backgrounds) else torch.zeros_like(sample["image"])
        size = image.shape[1], image.shape[2]
        nothing = torch.zeros((0, *size), dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
        target = target_of_masks(sample["target"], *nothing)
        view = sample["view"]._replace(width=size[1])
        return {
            **sample,
            "image": image,
            "path": path,
            "size": size,
            "view": view,
            "target": target,
        }

    def _own(self, own: Target, covered: Tensor) -> tuple[Tensor, Target]:
        """Return which of the image's own annotations are kept (M,), and their uncovered parts."""
        left = cover_target(own, covered)
        seen = left["masks"].flatten(1).any(1) | own["ignore_mask"]
        kept = seen & (self.settings.own != "nothing")
        if self.settings.own == "annotate":
            kept &= ~own["crowd"]
        left = keep_objects(left, kept)
        left["crowd"] = left["crowd"] | (self.settings.own == "ignore")
        return kept, left


def write_pasted(
    folder: Path,
    samples: Samples,
    paster: Paster,
    count: int,
    categories: Sequence[Record],
    seed: int = 0,
) -> None:
    """Write pasted images as png files and their labels as instances.json.

    The json also has the source of each object and background.

    Args:
        folder: output folder, with images/ and, written last, instances.json.
        samples: evaluation samples of `DataModule.samples` with masks, used in turn.
        paster: the paster.
        count: number of images.
        categories: categories of the data.
        seed: seed of all random draws.
    """
    images: list[Record] = []
    annotations: dict[int, list[Record]] = {}
    for number in range(1, count + 1):
        pasted = paster.paste(
            samples.sample((number - 1) % len(samples)), np.random.default_rng([seed, number])
        )
        file, image = f"{number:06d}.png", pasted.sample["image"]
        with atomic_write(folder / "images" / file) as scratch:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(scratch, "png", compress_level=1)
        entry = {"id": number, "file_name": file, "height": image.shape[1], "width": image.shape[2]}
        images.append({**entry, "background": pasted.sample["path"].name})
        annotations[number] = _annotations(pasted, categories)
    index = Index(
        name="pasted",
        root=folder / "images",
        images=images,
        categories=list(categories),
        annotations=annotations,
    )
    write_coco(folder / "instances.json", index)


def _annotations(pasted: Pasted, categories: Sequence[Record]) -> list[Record]:
    """Return the COCO annotations of a pasted sample, each with its source."""
    target = pasted.sample["target"]
    boxes, labels = target["boxes"].tolist(), target["labels"].tolist()
    crowd, ignore = (target[name].int().tolist() for name in ("crowd", "ignore_mask"))
    found = []
    for k, (mask, (x1, y1, x2, y2)) in enumerate(zip(target["masks"], boxes, strict=True)):
        segmentation = run_lengths(mask)
        found.append(
            {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(rle.area(segmentation)),
                "category_id": categories[labels[k]]["id"],
                "segmentation": segmentation,
                "iscrowd": crowd[k],
                "ignore": ignore[k],
                "source": pasted.sources[k],
            }
        )
    return found
