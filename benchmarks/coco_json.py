"""Time and memory of `read_coco` on a made-up instances file, beside those of `json.load`, which checks nothing.

    python benchmarks/coco_json.py [--megabytes 500] [--read json read_coco]

Each reads in a process of its own; seconds are of one core. The file is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, OBJECTS = 640, 480, 7


def write(path: Path, megabytes: int) -> int:
    """Write images, each with polygons of about 20 corners and an uncompressed crowd in a tenth; give the annotations."""
    rng, images, count = np.random.default_rng(0), 0, 0
    with path.open("w") as file:
        file.write('{"annotations": [')
        while file.tell() < megabytes * 1e6:
            images += 1
            records = [annotation(rng, images, count + k + 1) for k in range(OBJECTS)]
            file.write(", " * (count > 0) + json.dumps(records)[1:-1])
            count += OBJECTS
        listed = [
            {"id": k + 1, "file_name": f"{k:012d}.jpg", "width": WIDTH, "height": HEIGHT}
            for k in range(images)
        ]
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(80)]
        file.write(f'], "images": {json.dumps(listed)}, "categories": {json.dumps(categories)}}}')
    return count


def annotation(rng: np.random.Generator, image: int, number: int) -> dict[str, object]:
    x, y, w, h = (rng.uniform(0, 0.5, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT]).round(2).tolist()
    corners = rng.uniform(size=(int(rng.integers(10, 40)), 2)) * [w, h] + [x, y]
    crowd = int(rng.random() < 0.1 / OBJECTS)
    runs = rng.integers(1, 100, 2000)
    counts = [*runs.tolist(), WIDTH * HEIGHT - int(runs.sum())]
    return {
        "id": number,
        "image_id": image,
        "category_id": number % 80 + 1,
        "bbox": [x, y, w, h],
        "area": w * h / 2,
        "iscrowd": crowd,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}
        if crowd
        else [corners.round(2).ravel().tolist()],
    }


def measure(path: Path, reader: str) -> None:
    """Print seconds and the growth of the peak of memory in GB."""
    from wsis.data.index import read_coco

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    before, start = peak(), time.process_time()
    if reader == "json":
        with path.open("rb") as file:
            content = json.load(file)
        count = len(content["annotations"])
    else:
        index = read_coco(path, Path(), check_images=False)
        count = sum(map(len, index.annotations.values()))
    print(json.dumps([time.process_time() - start, peak() - before, count]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--read", nargs="+", default=["json", "read_coco"])
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.file:
        measure(given.file, given.read[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        print(f"{write(path, given.megabytes)} annotations, {path.stat().st_size / 1e6:.0f} MB")
        for reader in given.read:
            words = [sys.executable, __file__, "--file", str(path), "--read", reader]
            found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            seconds, memory, _ = json.loads(found.splitlines()[-1])
            print(f"{reader}: {seconds:.1f} s, {memory:.2f} GB")


if __name__ == "__main__":
    main()
