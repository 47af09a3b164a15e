"""Reads files of `wsis.predict` with the readers of other tools, and compares objects with pycocotools'.

python -m wsis.predict --run RUN PHOTOS --formats '[coco,label_studio,cvat]'
python benchmarks/other_tools.py predictions supervision fiftyone label_studio cvat [--picture OUT.jpg]

It needs pycocotools and the tools that are named, but not this library, so that it runs in the
environments of the tools: supervision; fiftyone, which has a MongoDB of its own or that of
FIFTYONE_DATABASE_URI; label-studio-sdk; datumaro, which reads CVAT's files. All photos are in one folder.
The picture is what supervision draws on four photos.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from pycocotools.coco import COCO


class Found(NamedTuple):
    """An object; what a tool does not keep is None."""

    name: str
    mask: np.ndarray
    box: np.ndarray | None = None
    score: float | None = None


Objects = dict[str, list[Found]]
"""By name of the photo's file."""


def read_coco(place: Path) -> Objects:
    coco, read = COCO(place / "coco.json"), {}
    for key, image in coco.imgs.items():
        objects = read.setdefault(Path(image["file_name"]).name, [])
        for a in coco.imgToAnns[key]:
            name, mask = coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool)
            objects.append(Found(name, mask, corners(a["bbox"]), a["score"]))
    return read


def corners(box: list[float]) -> np.ndarray:
    x, y, width, height = box
    return np.array([x, y, x + width, y + height])


def photos_of(place: Path) -> Path:
    """Return the folder of the photos."""
    first, *_ = json.loads((place / "images.json").read_text())["images"]
    return Path(first["file_name"]).parent


def read_supervision(place: Path) -> Objects:
    dataset, read = supervision_dataset(place), {}
    for path, _, found in dataset:
        things = zip(found.class_id, found.mask, found.xyxy, strict=True) if len(found) else ()
        read[Path(path).name] = [Found(dataset.classes[c], mask, box) for c, mask, box in things]
    return read


def supervision_dataset(place: Path) -> Any:
    import supervision as sv

    return sv.DetectionDataset.from_coco(
        str(photos_of(place)), str(place / "coco.json"), force_masks=True
    )


def read_fiftyone(place: Path) -> Objects:
    import fiftyone as fo

    dataset = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(photos_of(place)),
        labels_path=str(place / "coco.json"),
        label_types="segmentations",
        label_field="wsis",
    )
    dataset.compute_metadata()
    read: Objects = {}
    for sample in dataset:
        size = sample.metadata.width, sample.metadata.height
        read[Path(sample.filepath).name] = [
            Found(
                found.label,
                found.to_segmentation(frame_size=size, target=1).mask > 0,
                corners(np.multiply(found.bounding_box, 2 * size).tolist()),
                found.confidence,
            )
            for found in (sample.wsis.detections if sample.wsis else [])
        ]
    return read


def read_label_studio(place: Path) -> Objects:
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((place / "label_studio.xml").read_text())
    read: Objects = {}
    for task in json.loads((place / "label_studio.json").read_text()):
        (prediction,) = task["predictions"]
        if errors := interface.validate_prediction(prediction, return_errors=True):
            raise SystemExit(f"Label Studio refuses a prediction: {errors}")
        objects = read.setdefault(Path(unquote(task["data"]["image"])).name, [])
        for result in prediction["result"]:
            size = result["original_height"], result["original_width"], 4
            pixels = decode_rle(result["value"]["rle"]).reshape(size)
            objects.append(
                Found(result["value"]["brushlabels"][0], pixels[..., 3] > 0, None, result["score"])
            )
    return read


def read_cvat(place: Path) -> Objects:
    from datumaro import AnnotationType, Dataset

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "annotations.xml").write_bytes((place / "cvat.xml").read_bytes())
        (folder / "images").symlink_to(photos_of(place).resolve())
        dataset = Dataset.import_from(scratch, "cvat")
        names, read = dataset.categories()[AnnotationType.label], {}
        for item in dataset:
            shapes = [(names[a.label].name, np.asarray(a.image, bool)) for a in item.annotations]
            read[Path(item.media.path).name] = [Found(*shape) for shape in shapes]
        return read


READERS = {
    "supervision": read_supervision,
    "fiftyone": read_fiftyone,
    "label_studio": read_label_studio,
    "cvat": read_cvat,
}


def compare(tool: str, ours: Objects, theirs: Objects) -> None:
    """Print how the objects of a tool differ from ours; both are in the same order."""
    pairs = [pair for name, mine in ours.items() for pair in zip(mine, theirs[name], strict=True)]
    overlaps = [(a.mask & b.mask).sum() / max(1, (a.mask | b.mask).sum()) for a, b in pairs]
    far = [np.abs(a.box - b.box).max() for a, b in pairs if b.box is not None]
    scores = [abs(a.score - b.score) for a, b in pairs if b.score is not None]
    print(
        f"{tool}: {len(pairs)} objects on {len(ours)} photos,",
        f"{sum(a.name != b.name for a, b in pairs)} of another class;",
        f"mask IoU mean {np.mean(overlaps):.4f}, least {min(overlaps):.4f};",
        f"boxes at most {max(far):.3f} px off;" if far else "no boxes;",
        f"scores at most {max(scores):.6f} off" if scores else "no scores",
    )


def draw(place: Path, out: Path) -> None:
    """Write what supervision draws on the first four photos with several objects."""
    import supervision as sv
    from PIL import Image

    dataset = supervision_dataset(place)
    masks, labels = sv.MaskAnnotator(opacity=0.5), sv.LabelAnnotator(text_scale=0.4, text_padding=3)
    several = [(image, found) for _, image, found in dataset if len(found) > 2][:4]
    pictures = []
    for image, found in several:
        large = sv.resize_image(image, (400, 400), keep_aspect_ratio=True)
        scale = large.shape[1] / image.shape[1]
        found.mask = np.stack(
            [np.array(Image.fromarray(m).resize(large.shape[1::-1])) for m in found.mask]
        )
        found.xyxy = found.xyxy * scale
        names = [dataset.classes[c] for c in found.class_id]
        pictures.append(labels.annotate(masks.annotate(large, found), found, names))
    Image.fromarray(np.hstack(pictures)[..., ::-1]).save(out, quality=85)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("predictions", type=Path, help="what wsis.predict has written")
    arguments.add_argument("tools", nargs="*", help=", ".join(READERS))
    arguments.add_argument("--picture", type=Path)
    asked = arguments.parse_args()
    if unknown := {*asked.tools} - READERS.keys():
        arguments.error(f"no tool {', '.join(unknown)}")
    ours = read_coco(asked.predictions)
    for tool in asked.tools:
        compare(tool, ours, READERS[tool](asked.predictions))
    if asked.picture:
        draw(asked.predictions, asked.picture)


if __name__ == "__main__":
    main()
