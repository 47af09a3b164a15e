"""Pascal VOC xml files, one for each image, with classes of one's own."""

from __future__ import annotations

import math
from pathlib import Path

from wsis.data.index import refuse_fractions
from wsis.layouts.labels import Labels, Layout, Photo, Source, read_text, refuse_damaged, size_of
from wsis.layouts.shapes import around, outline, turned
from wsis.layouts.xml import Element, number_of, parse_xml, text_of
from wsis.types import Record

__all__ = ["LAYOUT"]


def _list(source: Source) -> Path:
    """Return the file of ImageSets that names the images of the split."""
    return source.path / "ImageSets" / "Main" / f"{source.split}.txt"


def _matches(source: Source) -> bool:
    if source.is_mixed and not _list(source).is_file():
        return False
    return any(_is_voc(path) for path in source.of_kind(".xml"))


def _is_voc(path: Path) -> bool:
    head = Source(path, path.parent, "").head
    return "<annotation>" in head or "<annotation " in head


def _read(source: Source) -> Labels:
    files = []
    for path in source.of_kind(".xml"):
        if _is_voc(path):
            files.append(path)
        else:
            refuse_damaged(path)
    if _list(source).is_file():
        stems = {line.split()[0] for line in read_text(_list(source)).splitlines() if line.strip()}
        files = [path for path in files if path.stem in stems]
    photos = [_photo(path, source.path) for path in files]
    boxes = [annotation["bbox"] for photo in photos for annotation in photo.objects]
    ends = ({"bbox": [x + width, y + height]} for x, y, width, height in boxes)
    refuse_fractions(ends, source.path)  # their beginnings, counted from 1, are below 0
    return Labels(photos, source.path)


def _photo(path: Path, folder: Path) -> Photo:
    root = parse_xml(path)
    written = text_of(root, "filename")
    # tools leave the file name of a renamed or converted image as it was
    file = written if Path(written.replace("\\", "/")).stem == path.stem else path.stem
    sides = number_of(root, "size/height"), number_of(root, "size/width")
    size = size_of(*sides, str(path)) if min(sides) > 0 else None  # some tools write 0
    objects = [_object(item) for item in root.iter("object")]
    name = path.relative_to(folder).parent / Path(file.replace("\\", "/")).name
    return Photo(str(name), str(path), (), objects, size)


def _object(item: Element) -> Record:
    """Return an object; VOC counts pixels from 1 and includes the last."""
    annotation: Record = {
        "name": text_of(item, "name"),
        "iscrowd": int(number_of(item, "difficult")),
    }
    polygon = item.find("polygon")
    if polygon is not None:  # Roboflow: x1, y1, x2, y2, ...
        sides = {child.tag: float(child.text or "") for child in polygon}
        points = [(sides[f"x{n}"], sides[f"y{n}"]) for n in range(1, len(sides) // 2 + 1)]
        annotation["segmentation"] = [outline(points)]
    if item.find("bndbox") is not None:
        x1, y1, x2, y2 = (
            number_of(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
        )
        annotation["bbox"] = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
    elif item.find("robndbox") is not None:  # roLabelImg: centre, sides, angle in radians
        x, y, width, height, angle = (
            number_of(item, f"robndbox/{part}") for part in ("cx", "cy", "w", "h", "angle")
        )
        box = x - width / 2, y - height / 2, width, height
        annotation["bbox"] = turned(box, math.degrees(angle), (x, y))
    elif polygon is not None:
        annotation["bbox"] = around(annotation["segmentation"])
    return annotation


LAYOUT = Layout("Pascal VOC", "a folder of image.xml", _matches, _read, ".xml")
