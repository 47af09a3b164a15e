"""The recipes for own photos on horses: from tags, boxes or masks to masks of 60 other photos; one table.

python benchmarks/photos.py HORSES_DIR COCO_DIR WEIGHTS [--backbone mobilenetv2_100] [--rows pdsl cam] [--horses 168]
    [--others 0] [--seeds 1] [--salient DIR] [SETTINGS]

HORSES_DIR has images/, instances_train.json and instances_val.json; COCO_DIR is laid out as COCO, and 200 of its images
without a horse are the negatives (fewer with fewer horses, in proportion). Photos of horses are tagged `horse`; the others
with nothing, or with those of the --others classes that are on most of them. WEIGHTS are of the backbone; SETTINGS go to
wsis.fit, such as --model.backbone.mean=[0.5,0.5,0.5] where the weights want that. Figures are in percent, of the validation
photos, by the last stage. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from _runs import call

from wsis.files import read_json
from wsis.reports.table import mean_and_range, print_table
from wsis.runs.record import stages

COLUMNS = ("AP25", "AP50", "AP75", "box_AP50", "CorLoc")
NEGATIVES, HORSES, SHIFT = 200, 168, 10**7
LABELS = {"boxcaseg": "boxes.json", "boxinst": "boxes.json", "mask_rcnn": "masks.json"}
"""Labels of the methods that are not taught by tags."""
ROWS = ("pdsl", "cam", "jtsm", "ccgr", "em_paste", "boxcaseg", "boxinst", "mask_rcnn")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("photos", type=Path)
    arguments.add_argument("coco", type=Path)
    arguments.add_argument("weights", type=Path, help="of the backbone")
    arguments.add_argument("--backbone", default="mobilenetv2_100", help="of timm")
    arguments.add_argument("--salient", type=Path, help="images and masks, for boxcaseg")
    arguments.add_argument("--rows", nargs="*", default=["pdsl", "cam"], choices=ROWS)
    arguments.add_argument("--horses", type=int, default=HORSES)
    arguments.add_argument("--others", type=int, default=0, help="classes besides horses")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--threads", type=int, help="of each run; all cores by default")
    arguments.add_argument("--out", type=Path, default=Path("runs/photos"))
    asked, asked.settings = arguments.parse_known_args()
    folder = make_folder(asked)
    lines = [["", *COLUMNS, "minutes"]]
    for row in asked.rows:
        runs = [figures(row, seed, folder, asked) for seed in range(asked.seeds)]
        lines.append([row, *map(mean_and_range, zip(*runs, strict=True))])
    print_table(lines)


def make_folder(asked: argparse.Namespace) -> Path:
    """Return a folder of links to photos with labels.csv, boxes.json and masks.json; val.json has masks."""
    folder = asked.out / f"photos-{asked.horses}-{1 + asked.others}"
    if (folder / "labels.csv").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    horses = read_json(asked.photos / "instances_train.json")
    horses["images"] = horses["images"][: asked.horses]
    kept = {image["id"] for image in horses["images"]}
    horses["annotations"] = [a for a in horses["annotations"] if a["image_id"] in kept]
    others = negatives(asked.coco, round(NEGATIVES * asked.horses / HORSES), asked.others)
    validation = read_json(asked.photos / "instances_val.json")
    for image in (*horses["images"], *validation["images"]):
        link(asked.photos / "images" / image["file_name"], folder)
    for image in others["images"]:
        link(Path(image.pop("path")), folder)
    masks = {key: horses[key] + others[key] for key in ("images", "annotations", "categories")}
    boxes = [{k: v for k, v in a.items() if k != "segmentation"} for a in masks["annotations"]]
    names = {category["id"]: category["name"] for category in masks["categories"]}
    tags: dict[int, set[str]] = {image["id"]: set() for image in masks["images"]}
    for annotation in masks["annotations"]:
        tags[annotation["image_id"]].add(names[annotation["category_id"]])
    rows = [f"{i['file_name']},{';'.join(sorted(tags[i['id']]))}\n" for i in masks["images"]]
    (folder / "val.json").write_text(json.dumps(validation))
    (folder / "masks.json").write_text(json.dumps(masks))
    (folder / "boxes.json").write_text(json.dumps(masks | {"annotations": boxes}))
    (folder / "labels.csv").write_text("file,tags\n" + "".join(rows))
    return folder


def negatives(coco: Path, count: int, classes: int) -> dict[str, list[dict[str, Any]]]:
    """Return images of COCO without a horse, by name, with the classes that are on most of them."""
    images, annotations = [], []
    for split in ("train2017", "val2017"):
        labels = read_json(coco / f"annotations/instances_{split}.json")
        horse = next(c["id"] for c in labels["categories"] if c["name"] == "horse")
        horses = {a["image_id"] for a in labels["annotations"] if a["category_id"] == horse}
        without = [image for image in labels["images"] if image["id"] not in horses]
        for image in sorted(without, key=lambda image: image["file_name"]):
            images.append({**image, "path": str(coco / split / image["file_name"])})
        annotations += labels["annotations"]
    for record in (*images, *annotations):  # beside those of the horses
        record["id"] += SHIFT
    for annotation in annotations:
        annotation["image_id"] += SHIFT
    kept = {image["id"] for image in images[:count]}
    seen = {(a["category_id"], a["image_id"]) for a in annotations if a["image_id"] in kept}
    common = {c for c, _ in Counter(c for c, _ in seen).most_common(classes)}
    return {
        "images": images[:count],
        "annotations": [
            a for a in annotations if a["image_id"] in kept and a["category_id"] in common
        ],
        "categories": [c for c in labels["categories"] if c["id"] in common],
    }


def link(path: Path, folder: Path) -> None:
    target = folder / path.name
    target.unlink(missing_ok=True)
    target.symlink_to(path.resolve())


def figures(row: str, seed: int, folder: Path, asked: argparse.Namespace) -> list[float]:
    """Train and judge one seed; the figures of COLUMNS in percent, and the minutes of its stages."""
    run = asked.out / f"{row}-{asked.backbone}-{asked.horses}-{1 + asked.others}-{seed}"
    if not (run / "test-val" / "metrics.json").is_file():
        words = ["--model", row, "--data", "folder", "--data.root", str(folder)]
        words += ["--model.backbone.name", asked.backbone]
        words += ["--model.backbone.weights", str(asked.weights), "--run_dir", str(run)]
        words += ["--seed_everything", str(seed), "--data.loading.seed", str(seed)]
        if row in LABELS:
            words += ["--data.labels", str(folder / LABELS[row])]
        if row == "boxcaseg":
            words += ["--model.salient", str(asked.salient)]
        call("fit", [*words, *asked.settings], asked.threads)
        call("test", ["--run", str(run)], asked.threads)
    judged = read_json(run / "test-val" / "metrics.json")["metrics"]
    minutes = sum(record.minutes or 0 for _, record in stages(run))
    return [*(100 * judged[name] for name in COLUMNS), minutes]


if __name__ == "__main__":
    main()
