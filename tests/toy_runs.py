"""Run folders as wsis.fit and wsis.test leave them, without the training: predictions are the truth, disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as rle_masks

from wsis.datasets.shapes import Shapes
from wsis.reports.evaluation import evaluate_file

TRAIN, VAL = 4, 8


def shapes(root: Path, **settings: Any) -> Shapes:
    return Shapes(**{"root": root, "train": TRAIN, "val": VAL, "proposals": "none"} | settings)


def make_run(
    folder: Path,
    root: Path,
    method: str = "cam",
    seed: int = 0,
    judged: bool = True,
    split: str = "val",
    **settings: Any,
) -> Path:
    """A finished run; `settings` are those of its data, `model` and `steps`."""
    model, steps = settings.pop("model", {}), settings.pop("steps", 900)
    classes = {
        "cam": "wsis.models.cam.CAM",
        "pdsl": "wsis.models.pdsl.PDSL",
        "mask_rcnn": "wsis.parts.mask_rcnn.MaskRCNN",
    }
    data = {"root": str(root), "train": TRAIN, "val": VAL, "proposals": "none", **settings}
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": steps},
        "model": {
            "class_path": classes[method],
            "init_args": {"backbone": {"name": "test_byobnet", "weights": "none"}, **model},
        },
        "data": {"class_path": "wsis.datasets.shapes.Shapes", "init_args": data},
    }
    (folder / "train/checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_stage(folder, settings={"model": classes[method]})
    if judged:
        source = Shapes(**{**data, "root": root, "labels": ""})
        results = folder / f"test-{split}/predictions.json"
        write_predictions(results, source, seed, split)
        evaluate_file(results, source, split)
    return folder


def write_stage(folder: Path, **changes: Any) -> None:
    path = folder / "train/stage.json"
    stage = (
        json.loads(path.read_text())
        if path.exists()
        else {"number": 1, "fingerprint": "0", "finished": True, "steps": 900}
    )
    costs = {"minutes": 2.5, "memory": 2**30, "device": "cpu", "commit": "abc1234567"}
    path.write_text(json.dumps(costs | stage | changes))


def write_predictions(path: Path, data: Shapes, seed: int, split: str = "val") -> None:
    """Each object kept, moved, renamed or dropped by chance, and a duplicate or a false alarm here and there."""
    rng, index, results = np.random.default_rng(seed), data.index(split), []
    for image in index.images:
        for annotation in index.annotations[image["id"]]:
            fate = rng.random()
            if fate < 0.2:
                continue
            mask = rle_masks.decode(annotation["segmentation"])
            shift = rng.integers(-3, 4, 2) if fate < 0.8 else rng.integers(10, 20, 2)
            moved = np.roll(mask, shift, (0, 1))
            label = (
                annotation["category_id"]
                if rng.random() < 0.85
                else 1 + annotation["category_id"] % 8
            )
            results += [_result(image["id"], label, rng.uniform(0.3, 1), moved)]
            if rng.random() < 0.2:
                results += [_result(image["id"], label, rng.uniform(0, 0.3), np.roll(moved, 1, 0))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))


def _result(image: int, label: int, score: float, mask: np.ndarray) -> dict[str, Any]:
    rle = rle_masks.encode(np.asfortranarray(mask))
    text = {"size": rle["size"], "counts": rle["counts"].decode()}
    box = [float(v) for v in rle_masks.toBbox(rle)]
    return {
        "image_id": image,
        "category_id": int(label),
        "score": float(score),
        "bbox": box,
        "segmentation": text,
    }
