"""What an index says of images, by name."""

from __future__ import annotations

from wsis.types import Index, class_of


def tags(index: Index) -> dict[str, list[str]]:
    """Tags of each file."""
    names = [category["name"] for category in index.categories]
    return {i["file_name"]: [names[t] for t in index.tags[i["id"]]] for i in index.images}


def objects(index: Index) -> dict[str, list[tuple]]:
    """Class and rounded box of each object of each file."""
    place = class_of(index.categories)
    return {
        image["file_name"]: [
            (
                index.categories[place[a["category_id"]]]["name"],
                *(round(v, 3) for v in a["bbox"]),
            )
            for a in index.annotations[image["id"]]
        ]
        for image in index.images
    }
