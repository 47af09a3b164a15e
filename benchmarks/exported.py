"""Whether an exported network finds in ONNX Runtime what the run finds in torch, on photos.

python benchmarks/exported.py RUN PHOTOS_DIR [--images 50] [--score 0.05] [--out model.onnx]

Each photo is also cropped by a random number of pixels, so that sizes are odd. Objects of the two are paired by box, score
and class. Photos that are scaled before have nothing to round: their short side is that of the network's input. Times are
CPU seconds: one thread of each.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from scipy.optimize import linear_sum_assignment

import wsis
from wsis.export import export
from wsis.images.read import pictures, read_image
from wsis.nn.views import resize


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", type=Path)
    arguments.add_argument("photos", type=Path)
    arguments.add_argument("--images", type=int, default=50)
    arguments.add_argument("--score", type=float, default=0.05)
    arguments.add_argument("--out", type=Path, default=Path("model.onnx"))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    export(str(given.run), given.out, score=given.score)
    print(f"export: {time.process_time() - start:.0f} s")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(given.out, options)
    loaded, chance = wsis.load(given.run), random.Random(0)
    pictured, spent = pictures(given.photos)[: given.images], np.zeros(2)
    for kind in ("as they are", "scaled before"):
        rows = []
        for path in pictured:
            pixels = read_image(path)[:, chance.randrange(40) :, chance.randrange(40) :]
            if kind == "scaled before":
                settings = loaded.model.hparams
                pixels = resize(pixels, settings["test_side"], settings["test_max_side"])
            begin = time.process_time()
            wanted = wsis.predict(loaded.model, pixels).above(given.score)
            between = time.process_time()
            found = session.run(None, {"image": pixels.numpy()})
            spent += between - begin, time.process_time() - between
            rows.append(compare(found, wanted))
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        for least in (given.score, loaded.threshold):
            tell(f"{len(rows)} photos {kind}, scores from {least:.2f}", columns, least)
    times = spent / len(pictured) / 2
    print(f"seconds an image: torch {times[0]:.2f}, onnxruntime {times[1]:.2f}")


def tell(what: str, columns: list[np.ndarray], least: float) -> None:
    """Print how alike the objects of at least a score are."""
    boxes, unlike, masks = (column[columns[0] >= least] for column in columns[1:])
    print(
        f"{what}: {len(boxes)} objects, boxes within .5 px {(boxes < 0.5).mean():.1%}, mask IoU "
        f"from .99 {(masks >= 0.99).mean():.1%}, from .95 {(masks >= 0.95).mean():.1%}, mean "
        f"{masks.mean():.4f}, scores within .01 {(unlike < 0.01).mean():.1%}"
    )


def compare(found: list[np.ndarray], wanted: wsis.Prediction) -> tuple[np.ndarray, ...]:
    """Scores of the objects in torch; differences of boxes and scores and mask IoU with their pairs.

    An object without a pair has an IoU of 0.
    """
    boxes, scores, labels, masks = found
    far = np.abs(boxes[:, None] - wanted.boxes.numpy()).max(2)
    unlike = np.abs(scores[:, None] - wanted.scores.numpy())
    other = labels[:, None] != wanted.labels.numpy()
    one, two = linear_sum_assignment(far + 1000 * unlike + 1e6 * other)
    columns = np.full((3, len(wanted.scores)), np.inf)
    columns[:2, two] = far[one, two], unlike[one, two]
    columns[2] = 0
    for i, j in zip(one, two, strict=True):
        a, b = masks[i], np.asarray(wanted.binary_masks())[j]
        columns[2, j] = (a & b).sum() / (a | b).sum() if (a | b).any() else 1
    return wanted.scores.numpy(), *columns


if __name__ == "__main__":
    main()
