"""Our proposals and OpenCV contrib's selective search (fast) on the same COCO validation images, one core each.

python benchmarks/proposals.py COCO_DIR [--images 100] [--proposer segments ncut] [--peer-python PYTHON_WITH_OPENCV_CONTRIB]
Of several proposers, the merged proposals are judged, too.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from wsis.datasets.coco import COCO
from wsis.metrics.proposals import ProposalRecall
from wsis.proposals.file import pack
from wsis.proposals.merge import merged
from wsis.proposals.proposers import propose
from wsis.types import Proposals

COUNTS = (100, 500, 1000, 2000)
PEER = """
import sys, time, cv2, numpy as np
cv2.setNumThreads(1)
images, found, seconds = np.load(sys.argv[1]), {}, []
for name in images.files:
    start = time.process_time()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(images[name][..., ::-1]))
    search.switchToSelectiveSearchFast()
    found[name] = search.process()
    seconds.append(time.process_time() - start)
np.savez(sys.argv[2], seconds=seconds, **found)
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("coco", type=Path)
    arguments.add_argument("--images", type=int, default=100)
    arguments.add_argument("--proposer", nargs="+", default=["segments"])
    arguments.add_argument("--peer-python", type=Path)
    asked = arguments.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    samples = COCO(root=asked.coco, proposals="none").samples("val", train=False)
    chosen = [s for s in (samples.sample(i) for i in range(len(samples))) if len(s["truth"].boxes)][
        : asked.images
    ]
    pixels = [np.ascontiguousarray(s["image"].permute(1, 2, 0).numpy()) for s in chosen]
    truths = [s["truth"] for s in chosen]

    every = []
    for name in asked.proposer:
        propose(pixels[0], name)  # loads a network
        every.append(_timed(lambda image, name=name: propose(image, name), pixels))
        _report(name, *every[-1], truths)
    if len(every) > 1:
        found = [found for _, found in every]
        _report(
            "merged, the merging alone", *_timed(merged, list(zip(*found, strict=True))), truths
        )
    if asked.peer_python:
        _report("selective search, fast", *_peer(asked.peer_python, pixels), truths)


def _timed(make, inputs: list) -> tuple[list[float], list[Proposals]]:
    seconds, found = [], []
    for one in inputs:
        start = time.process_time()
        found.append(make(one))
        seconds.append(time.process_time() - start)
    return seconds, found


def _peer(python: Path, pixels: list[np.ndarray]) -> tuple[list[float], list[Proposals]]:
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images.npz"), Path(folder, "out.npz")
        np.savez(images, **{str(i): image for i, image in enumerate(pixels)})
        subprocess.run([python, "-c", PEER, images, out], check=True)
        content = np.load(out)
        boxes = [content[str(i)].astype(np.float32) for i in range(len(pixels))]
        seconds = content["seconds"].tolist()
    for own in boxes:
        own[:, 2:] += own[:, :2]
    return seconds, [Proposals(torch.from_numpy(own), torch.ones(len(own))) for own in boxes]


def _report(name: str, seconds: list[float], found: list[Proposals], truths: list) -> None:
    recall = ProposalRecall(COUNTS, (0.5,))
    recall.update(found, truths)
    figures = {key: value.item() for key, value in recall.compute().items() if value >= 0}
    large = ProposalRecall(COUNTS, (0.5,))
    large.update(found, [_large(truth) for truth in truths])
    print(
        f"{name}: {np.mean(seconds):.2f} s an image, {np.mean([len(p.boxes) for p in found]):.0f} proposals"
    )
    if found[0].members is not None:
        size = np.mean([len(pack(p)) for p in found])
        superpixels = np.mean([p.members.shape[1] for p in found])
        print(f"  {size / 1000:.1f} kB an image; {superpixels:.0f} superpixels")
    for kind in ("box", "mask"):
        for count in COUNTS if f"{kind}_abo/{COUNTS[0]}" in figures else ():
            found_part, overlap = (
                figures[f"{kind}_recall@0.5/{count}"],
                figures[f"{kind}_abo/{count}"],
            )
            print(
                f"  {kind:<4} at {count:>4}: recall .5 {found_part:.3f}  average best overlap {overlap:.3f}"
            )
    print(
        f"  box at 2000, objects above 96 px: recall .5 {large.compute()['box_recall@0.5/2000']:.3f}"
    )


def _large(truth):
    sides = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1).sqrt()
    return truth._replace(crowd=truth.crowd | (sides < 96))


if __name__ == "__main__":
    main()
