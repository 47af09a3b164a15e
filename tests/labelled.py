"""What an index says of images, by name."""

from __future__ import annotations

from wsis.types import Index, class_of


def tags(index: Index) -> dict[str, list[str]]:
    """Tags of each file."""
    names = [category["name"] for category in index.categories]
    return {i["file_name"]: [names[t] for t in index.tags[i["id"]]] for i in index.images}


def objects(index: Index) -> dict[str, list[tuple]]:
    """Class and rounded box of each object of each file, without those that have no box."""
    place = class_of(index.categories)
    return {
        image["file_name"]: [
            (
                index.categories[place[a["category_id"]]]["name"],
                *(round(v, 3) for v in a["bbox"]),
            )
            for a in index.annotations[image["id"]]
            if "bbox" in a
        ]
        for image in index.images
    }


def points(index: Index) -> dict[str, list[tuple]]:
    """Class and points of each object of each file that has any."""
    place = class_of(index.categories)
    return {
        image["file_name"]: [
            (index.categories[place[a["category_id"]]]["name"], *map(tuple, a["points"]))
            for a in index.annotations[image["id"]]
            if "points" in a
        ]
        for image in index.images
    }


def incomplete(index: Index) -> dict[str, list[str]]:
    """Classes of each file that may have objects whose place is not labelled."""
    names = [category["name"] for category in index.categories]
    every = range(len(names))
    return {
        image["file_name"]: [
            names[k] for k in every if k not in index.complete.get(image["id"], every)
        ]
        for image in index.images
    }
