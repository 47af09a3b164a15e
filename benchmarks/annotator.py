"""What an order of images is worth: AP50 for the seconds of a simulated annotator, on generated data; one table.

python benchmarks/annotator.py [--orders worth random] [--way box] [--model boxinst] [--seconds 600] [--rounds 3]
    [--train 300] [--val 100] [--seed 0] [--out runs/annotator] [SETTINGS]

Each round labels images in the given order until its seconds are spent, trains on all labels so far, as the button of the
page does, and predicts all images, which the next round is ordered and suggested by. The first round is at random. The
annotator knows the truth and makes no mistake; seconds are those of `wsis.serve.order.Seconds`. SETTINGS go to wsis.fit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from _runs import CONFIGS

from wsis.coco.masks import run_length
from wsis.datasets.shapes import Shapes
from wsis.reports.table import percent, print_table
from wsis.runs.record import stages
from wsis.serve.annotator import annotate
from wsis.serve.labels import version_of
from wsis.serve.order import next_images
from wsis.serve.store import Store
from wsis.serve.suggestions import Suggestion, suggestions
from wsis.serve.training import Recipe, Training
from wsis.types import Index, Record


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--orders", nargs="+", default=["worth", "random"])
    arguments.add_argument("--way", default="box", choices=("tag", "point", "box"))
    arguments.add_argument("--model", default="boxinst")
    arguments.add_argument("--seconds", type=float, default=600, help="of a round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--train", type=int, default=300)
    arguments.add_argument("--val", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0, help="of the data and the random order")
    arguments.add_argument("--out", type=Path, default=Path("runs/annotator"))
    asked, settings = arguments.parse_known_args()
    data = Shapes(asked.out / "shapes", train=asked.train, val=asked.val, seed=asked.seed)
    lines = [["order", "round", "seconds", "images", "AP50"]]
    for order in asked.orders:
        for line in rounds(order, data, asked, settings):
            lines.append([order, *line])
            print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    print_table(lines)


def rounds(order: str, data: Shapes, asked: argparse.Namespace, settings: list[str]):
    """Yield what is printed of each round; what an earlier call left is done again."""
    place = asked.out / order
    shutil.rmtree(place, ignore_errors=True)
    truth = write_photos(place / "photos", data)
    classes = [category["name"] for category in data.index("train").categories]
    store = Store(place / "photos", classes=classes)
    words = ("--config", str(CONFIGS / "shapes" / f"{asked.model}.yaml"), *settings)
    training = Training(store.root, Recipe(asked.model, words, "cpu"), runs=place / "runs")
    spent = 0.0
    for number in range(1, asked.rounds + 1):
        spent += label_for(asked.seconds, order, store, training, truth, asked)
        training.start(store)
        training.wait()
        if training.run is None or training.state()["state"] != "finished":
            sys.exit(training.state()["line"])
        _, stage = stages(training.run)[-1]
        score = percent(stage.metrics.get("val/AP50", float("nan")))
        yield [str(number), f"{spent:.0f}", str(store.done), score]
    store.close()


def write_photos(folder: Path, data: Shapes) -> dict[str, list[Suggestion]]:
    """Write the images, and those of val.json, to a folder; return the objects of the former."""
    for split, home in (("train", folder), ("val", folder / "val")):
        home.mkdir(parents=True)
        index = data.index(split)
        for image in index.images:
            (home / Path(image["file_name"]).name).symlink_to(
                (index.root / image["file_name"]).resolve()
            )
    val = data.index("val")
    (folder / "val.json").write_text(json.dumps(instances(val)))
    train = data.index("train")
    names = {category["id"]: category["name"] for category in train.categories}
    return {
        Path(image["file_name"]).name: [
            known(a, names, image) for a in train.annotations[image["id"]] if not a.get("iscrowd")
        ]
        for image in train.images
    }


def instances(index: Index) -> Record:
    """COCO instances of images in val/."""
    images = [{**i, "file_name": f"val/{Path(i['file_name']).name}"} for i in index.images]
    found = [{**a, "image_id": i} for i, each in index.annotations.items() for a in each]
    return {"images": images, "annotations": found, "categories": index.categories}


def known(annotation: Record, names: dict[int, str], image: Record) -> Suggestion:
    packed = run_length(annotation["segmentation"], (image["height"], image["width"]))
    counts = packed["counts"]
    mask = {**packed, "counts": counts.decode() if isinstance(counts, bytes) else counts}
    name, box = names[annotation["category_id"]], [float(side) for side in annotation["bbox"]]
    return {"name": name, "score": 1.0, "bbox": box, "segmentation": mask}


def label_for(
    seconds: float,
    order: str,
    store: Store,
    training: Training,
    truth: dict[str, list[Suggestion]],
    asked: argparse.Namespace,
) -> float:
    """Label images until the seconds are spent; return how many were."""
    classes = len(store.classes)
    ranked = next_images(
        store.names, store.labels(), training.found, classes, order, seed=asked.seed
    )
    spent = 0.0
    for name in ranked:
        if spent >= seconds:
            break
        before = store.label(name)
        suggested = suggestions(training.found, name, before)
        answer = annotate(truth[name], suggested, store.classes, asked.way)
        store.put(name, version_of(before), answer.label)
        spent += answer.seconds
    return spent


if __name__ == "__main__":
    main()
