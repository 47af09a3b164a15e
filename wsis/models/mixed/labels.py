"""Labels of all objects: what people gave, and masks that a network found for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from pathlib import Path

from pycocotools import mask as rle

from wsis.coco.masks import run_length
from wsis.coco.objects import kind_of
from wsis.data.index import write_coco
from wsis.data.labels import relabel
from wsis.types import Index, Record

__all__ = ["completed", "write_labels"]


def write_labels(folder: Path, own: Index, found: Path) -> None:
    """Write the labels of a data set, completed by what a network found, to labels.json.

    Classes that are known by a tag are not complete there: detections may lack some objects.

    Args:
        folder: to write to.
        own: the data set as it is labelled.
        found: COCO instances of the same images, with scores.
    """
    theirs, annotations, complete = relabel(own, found).annotations, {}, {**own.complete}
    for image in own.images:
        number, size = image["id"], (image["height"], image["width"])
        tags = {own.categories[c]["id"] for c in own.tags.get(number) or ()}
        mine = own.annotations.get(number, [])
        annotations[number] = completed(mine, theirs.get(number, []), tags, size)
        by_tag = {a["category_id"] for a in mine if kind_of(a) == "tag"}
        if unplaced := (tags - _placed(mine)) | by_tag:
            whole = own.complete.get(number, range(len(own.categories)))
            complete[number] = [c for c in whole if own.categories[c]["id"] not in unplaced]
    labels = own._replace(annotations=annotations, complete=complete)
    write_coco(folder / "labels.json", labels)


def completed(
    mine: Sequence[Record], found: Sequence[Record], tags: Set[int], size: tuple[int, int]
) -> list[Record]:
    """Return the annotations of an image with masks for objects that have neither mask nor box.

    An object with points takes the best detection of its class that holds all of them and none of
    its negative ones; without such a detection it stays as it is. A detection is taken once. A
    tagged class without any object takes all of its detections.

    Args:
        mine: annotations as people gave them.
        found: detections with `score` and `segmentation`.
        tags: category ids of the image's classes.
        size: (height, width) of the image.
    """
    left: dict[int, list[Record]] = defaultdict(list)
    for detection in sorted(found, key=lambda a: -a["score"]):
        left[detection["category_id"]].append(detection)
    result = [annotation for annotation in mine if kind_of(annotation) in ("mask", "box")]
    for annotation in mine:
        if kind_of(annotation) == "point":
            candidates = left[annotation["category_id"]]
            best = next((d for d in candidates if _holds(d, annotation["points"], size)), None)
            if best is not None:
                candidates.remove(best)
            result.append({**annotation, **(best or {})})
    for category in sorted(tags - _placed(mine)):
        result += left[category]
    return result


def _placed(annotations: Sequence[Record]) -> set[int]:
    """Return the classes of which an object has a mask, a box or points."""
    return {a["category_id"] for a in annotations if kind_of(a) != "tag"}


def _holds(detection: Record, points: Sequence[Sequence[float]], size: tuple[int, int]) -> bool:
    """Return whether a detection's mask has all points in the object and no other."""
    mask = rle.decode(run_length(detection["segmentation"], size))
    return all(bool(mask[int(y), int(x)]) == bool(label) for x, y, label in points)
