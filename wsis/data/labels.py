"""Replace a data set's training annotations by other labels, such as pseudo-labels."""

from __future__ import annotations

from pathlib import Path

from wsis.data.index import keep_images, read_coco
from wsis.errors import InputError
from wsis.types import Index, Record, class_of

__all__ = ["relabel"]


def relabel(own: Index, path: Path) -> Index:
    """Return the images of a COCO instances file with its annotations; tags do not change.

    Args:
        own: the data set, with all images that may be labelled.
        path: the instances json; annotations may carry `score`, `source` and `ignore`.

    Raises:
        InputError: the images, their sizes or the classes differ from those of the data set.
    """
    given = read_coco(
        path, own.root, [category["name"] for category in own.categories], check_images=False
    )
    position = class_of(given.categories)
    number = [category["id"] for category in own.categories]
    by_id = {image["id"]: image for image in own.images}
    for image in given.images:
        _check_image(image, by_id.get(image["id"]), own.name, path)
    labels = {
        image: [{**a, "category_id": number[position[a["category_id"]]]} for a in found]
        for image, found in given.annotations.items()
    }
    kept = keep_images(own, {image["id"] for image in given.images})
    return kept._replace(annotations=labels, complete=given.complete)


def _check_image(image: Record, mine: Record | None, name: str, path: Path) -> None:
    if mine is None or mine["file_name"] != image["file_name"]:
        raise InputError(
            f"{path} labels {image['file_name']}, not a training image of {name}; label this data"
        )
    theirs, ours = ((record["width"], record["height"]) for record in (image, mine))
    if theirs != ours:
        raise InputError(
            f"{path} labels {image['file_name']} at {theirs[0]} x {theirs[1]} pixels, but it has "
            f"{ours[0]} x {ours[1]}; label the images as they are"
        )
