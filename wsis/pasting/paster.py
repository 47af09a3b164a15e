"""Training images with foregrounds pasted on them, made as they are loaded (EM-Paste, section 3.3) or written as files."""

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
from wsis.data.targets import join_targets, target_of_image, target_of_masks
from wsis.errors import InputError
from wsis.files import whole
from wsis.fingerprint import file_hash
from wsis.images.read import pictures, read_image
from wsis.nn.masks import run_lengths
from wsis.pasting.compose import Blend, Where, compose
from wsis.pasting.pool import ForegroundPool, draw_foregrounds
from wsis.types import Index, Record, Sample, Target

if TYPE_CHECKING:
    from wsis.data.samples import Samples

__all__ = ["Own", "Paste", "Paster", "write_pasted"]

Own = Literal["annotate", "ignore", "nothing"]


@dataclass(frozen=True)
class Paste:
    """How foregrounds are pasted on training images.

    Args:
        foregrounds: folder of a pool.
        objects: the fewest and the most that are pasted on an image.
        select: "uniform" draws every foreground as often, "balanced" every class.
        where: "random" anywhere, "space" where most room is left.
        blend: "gaussian", "poisson" or "none".
        scale: least and largest factor on a foreground's own size.
        rotation: largest turn either way, in degrees.
        least_area: foregrounds whose box has fewer square pixels are left out.
        backgrounds: "none" pastes on the training images alone; "black" on black ones, too, a folder on its pictures.
        share: of the images whose background is such a one.
        own: what is done with the training image's own annotations: "annotate" keeps them, but crowds; "ignore" makes all of
            them crowds; "nothing" drops them.
    """

    foregrounds: Path
    objects: tuple[int, int] = (4, 4)
    select: Literal["uniform", "balanced"] = "uniform"
    where: Where = "random"
    blend: Blend = "gaussian"
    scale: tuple[float, float] = (0.3, 1.0)
    rotation: float = 30.0
    least_area: float = 700.0
    backgrounds: str = "none"
    share: float = 1 / 3
    own: Own = "annotate"

    def __post_init__(self) -> None:
        """Refuse what nothing could be pasted by."""
        if (
            not 0 <= self.objects[0] <= self.objects[1]
            or not 0 <= self.share <= 1
            or self.own not in ("annotate", "ignore", "nothing")
        ):
            raise InputError(
                f"{self}: give objects from 0 up, the fewest first, a share in [0, 1], and a known `own`"
            )

    def content(self) -> list[Any]:
        """What the pasted images depend on, without paths."""
        pool, pictures = (
            self.foregrounds / "foregrounds.json",
            [(p.name, p.stat().st_size) for p in self.pictures()],
        )
        plain = asdict(
            replace(
                self, foregrounds=Path(), backgrounds="folder" if pictures else self.backgrounds
            )
        )
        return [plain, file_hash(pool), pictures]

    def pictures(self) -> list[Path]:
        """The pictures that are backgrounds beside the training images.

        Raises:
            InputError: no such folder, or no picture in it.
        """
        if self.backgrounds in ("none", "black"):
            return []
        folder = Path(self.backgrounds)
        found = pictures(folder)
        if not found:
            raise InputError(
                f'no pictures in {folder} for backgrounds; give "none", "black" or a folder of pictures'
            )
        return found


class Pasted(NamedTuple):
    """A sample with foregrounds pasted, and where each of its objects is from."""

    sample: Sample
    sources: list[str]
    """Of each object of the target: an image's or a foreground's file name."""


class Paster:
    """Pastes on samples as a generator says; travels to loader workers.

    Args:
        settings: how.
        categories: names of the data's classes, which must be the pool's.

    Raises:
        InputError: no pool, no large foreground in it, one of other classes, or no backgrounds.
    """

    def __init__(self, settings: Paste, categories: Sequence[str]) -> None:
        self.settings, self.pool = (
            settings,
            ForegroundPool(settings.foregrounds, settings.least_area),
        )
        self.backgrounds = np.array(
            [str(path) for path in settings.pictures()]
        )  # an array: workers share its pages
        if self.pool.categories != list(categories):
            raise InputError(
                f"{settings.foregrounds} has foregrounds of {', '.join(self.pool.categories)}; the data has the classes "
                f"{', '.join(categories)}; make foregrounds of this data"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Paste on a sample that holds masks; equal generators give equal bits."""
        return self.paste(sample, rng).sample

    def content(self) -> list[Any]:
        """Return what pasted images depend on, without paths."""
        return self.settings.content()

    def paste(self, sample: Sample, rng: np.random.Generator) -> Pasted:
        """Paste, and say where each object is from."""
        how = self.settings
        sample, sources = (
            self._on_other_background(sample, rng),
            [sample["path"].name] * len(sample["target"]["boxes"]),
        )
        own = sample["target"]
        numbers = draw_foregrounds(self.pool.labels, how.objects, rng, how.select)
        images, masks = (
            zip(*(self.pool.draw(n) for n in numbers), strict=True) if len(numbers) else ((), ())
        )
        composed = compose(
            sample["image"],
            images,
            masks,
            how.where,
            how.blend,
            rng,
            how.scale,
            how.rotation,
            own["masks"][~own["crowd"]],
        )
        covered = (
            composed.masks.any(0)
            if len(composed.masks)
            else torch.zeros(sample["image"].shape[1:], dtype=torch.bool)
        )
        kept, mine = self._own(own, covered)
        seen = composed.masks.flatten(1).any(1)
        labels = torch.from_numpy(self.pool.labels[numbers])[seen]
        target = join_targets(mine, target_of_masks(own, composed.masks[seen], labels))
        sources = [s for s, k in zip(sources, kept.tolist(), strict=False) if k]
        sources += [self.pool.file(n) for n, s in zip(numbers, seen.tolist(), strict=True) if s]
        return Pasted({**sample, "image": composed.image, "target": target}, sources)

    def _on_other_background(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, or by chance another background of which nothing is known but that none of the objects is there."""
        how = self.settings
        if how.backgrounds == "none" or rng.random() >= how.share:
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
        """Which of the image's own annotations are kept, and what is left to see of them; the box of an unsure mask stays."""
        masks = own["masks"] & ~covered
        kept = (masks.flatten(1).any(1) | own["unsure"]) & (self.settings.own != "nothing")
        if self.settings.own == "annotate":
            kept &= ~own["crowd"]
        left = target_of_masks(own, masks[kept], own["labels"][kept]) | target_of_image(own)
        left["unsure"] = own["unsure"][kept]
        left["boxes"] = torch.where(left["unsure"][:, None], own["boxes"][kept], left["boxes"])
        left["crowd"] |= self.settings.own == "ignore"
        return kept, left


def write_pasted(
    folder: Path,
    samples: Samples,
    paster: Paster,
    count: int,
    categories: Sequence[Record],
    seed: int = 0,
) -> None:
    """Write pasted images as png and their labels as instances.json, with the source of each object and background.

    Args:
        folder: gets images/ and, last, instances.json.
        samples: Of `DataModule.samples`, with masks and not for training, which are pasted on in turn.
        paster: pastes.
        count: images to write.
        categories: of the data.
        seed: of everything drawn.
    """
    images: list[Record] = []
    annotations: dict[int, list[Record]] = {}
    for number in range(1, count + 1):
        sample, sources = paster.paste(
            samples.sample((number - 1) % len(samples)), np.random.default_rng([seed, number])
        )
        target, file = sample["target"], f"{number:06d}.png"
        with whole(folder / "images" / file) as scratch:
            Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(
                scratch, "png", compress_level=1
            )
        height, width = sample["image"].shape[1:]
        images.append(
            {
                "id": number,
                "file_name": file,
                "height": height,
                "width": width,
                "background": str(sample["path"].name),
            }
        )
        encoded = [run_lengths(mask) for mask in target["masks"]]
        columns = [
            target["boxes"].tolist(),
            *(target[name].int().tolist() for name in ("labels", "crowd", "unsure")),
        ]
        annotations[number] = [
            {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(rle.area(mask)),
                "category_id": categories[label]["id"],
            }
            | {"segmentation": mask, "iscrowd": crowd, "ignore": unsure, "source": source}
            for mask, (x1, y1, x2, y2), label, crowd, unsure, source in zip(
                encoded, *columns, sources, strict=True
            )
        ]
    index = Index(
        name="pasted",
        root=folder / "images",
        images=images,
        categories=list(categories),
        annotations=annotations,
    )
    write_coco(folder / "instances.json", index)
