"""How long a comparison of many runs takes, and how large its page is: `python benchmarks/compare.py FOLDER`.

Seven runs with predictions made from the truth of generated images, enlarged and grained so that they cost what photographs
cost; predictions and figures are there before the clock starts, as they are after `wsis.test`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from pycocotools import mask as rle_masks

from wsis import compare
from wsis.datasets._scene import THINGS, SceneSettings, paint_scene
from wsis.datasets.coco import COCO
from wsis.nn.masks import run_lengths
from wsis.reports.evaluation import evaluate_file

METHODS = {
    "boxcaseg": "BoxCaseg",
    "cam": "CAM",
    "ccgr": "CCGR",
    "jtsm": "JTSM",
    "mask_rcnn": "MaskRCNN",
    "pdsl": "PDSL",
}
SCALE = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--detections", type=int, default=20, help="of a run on an image, on average"
    )
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    data = given.folder / "data"
    if not data.exists():
        write_data(data, given.images)
    runs = [
        write_run(given.folder / f"run-{k}", data, k, given.detections) for k in range(given.runs)
    ]
    profile = cProfile.Profile()
    begun, busy = time.perf_counter(), time.process_time()
    if given.profile:
        profile.enable()
    compare.main([*map(str, runs), "--out", str(given.folder / "results"), "--accelerator", "cpu"])
    profile.disable()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    size = (given.folder / "results/coco.html").stat().st_size / 1e6
    what = f"{given.runs} runs of {given.images} images, {given.detections} detections each"
    print(f"{what}: {seconds:.1f} s, {busy:.1f} s of them on a core; page {size:.1f} MB")
    if given.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(30)


def write_data(folder: Path, count: int) -> None:
    """Scenes of 640 x 640 pixels as COCO has them."""
    for part in ("train2017", "val2017", "annotations"):
        (folder / part).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    settings, shares = SceneSettings(mark=0.3, rotation=0.3), np.full(len(THINGS), 1 / len(THINGS))
    for number in range(1, count + 1):
        rng = np.random.default_rng(number)
        scene = paint_scene(rng, settings, number % len(THINGS), shares)
        picture = cv2.resize(scene.image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        grained = (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(
            str(folder / f"val2017/{number:012d}.jpg"),
            grained[..., ::-1],
            [cv2.IMWRITE_JPEG_QUALITY, 92],
        )
        owner = cv2.resize(
            scene.owner.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST
        )
        images.append(
            {
                "id": number,
                "file_name": f"{number:012d}.jpg",
                "height": owner.shape[0],
                "width": owner.shape[1],
            }
        )
        for k, label in enumerate(scene.labels):
            mask = as_rle(owner == k + 1)
            own = {
                "bbox": rle_masks.toBbox(mask).tolist(),
                "area": int(rle_masks.area(mask)),
                "segmentation": mask,
            }
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    **own,
                }
            )
    categories = [{"id": k + 1, "name": kind.name} for k, kind in enumerate(THINGS)]
    val = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(val))
    one = {
        **val,
        "images": images[:1],
        "annotations": [a for a in annotations if a["image_id"] == 1],
    }
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(one))
    (folder / "train2017" / images[0]["file_name"]).write_bytes(
        (folder / "val2017" / images[0]["file_name"]).read_bytes()
    )


def write_run(folder: Path, data: Path, seed: int, detections: int) -> Path:
    """A finished run that has been judged."""
    if folder.exists():
        return folder
    method = sorted(METHODS)[seed % len(METHODS)]
    path = f"wsis.models.{method}.{METHODS[method]}"
    (folder / "train/checkpoints").mkdir(parents=True)
    arguments = {
        "class_path": "wsis.datasets.coco.COCO",
        "init_args": {"root": str(data), "proposals": "none"},
    }
    settings = {"backbone": {"name": "resnet50" if seed < len(METHODS) else "resnet18"}}
    config = {
        "seed_everything": 0,
        "model": {"class_path": path, "init_args": settings},
        "data": arguments,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    stage = {
        "number": 1,
        "fingerprint": "0",
        "finished": True,
        "steps": 1,
        "settings": {"model": path},
    }
    (folder / "train/stage.json").write_text(
        json.dumps(stage | {"minutes": 1.0, "memory": 2**30, "commit": "0"})
    )
    index = COCO(data, proposals="none").index("val")
    rng, results = np.random.default_rng(seed), []
    for image in index.images:
        there = index.annotations[image["id"]]
        masks = [rle_masks.decode(a["segmentation"]).astype(bool) for a in there]
        for n in range(rng.poisson(detections)):
            k = int(rng.integers(len(there))) if n >= len(there) else n
            shift = rng.integers(-12, 13, 2) if n < len(there) else rng.integers(-150, 151, 2)
            label = (
                there[k]["category_id"]
                if rng.random() < 0.8
                else int(rng.integers(1, len(THINGS) + 1))
            )
            mask = as_rle(np.roll(masks[k], shift, (0, 1)))
            result = {
                "image_id": image["id"],
                "category_id": label,
                "score": float(rng.random() ** (1 + (n >= len(there)) * 3)),
            }
            results.append(
                {**result, "bbox": rle_masks.toBbox(mask).tolist(), "segmentation": mask}
            )
    (folder / "test-val").mkdir()
    (folder / "test-val/predictions.json").write_text(json.dumps(results))
    evaluate_file(folder / "test-val/predictions.json", COCO(data, proposals="none"))
    return folder


def as_rle(mask: np.ndarray) -> dict[str, Any]:
    rle = run_lengths(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


if __name__ == "__main__":
    main()
