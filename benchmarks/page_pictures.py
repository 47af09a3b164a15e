"""Pictures of docs/photos.md and docs/sharing.md, of what a run on generated data finds.

python -m wsis.fit --model pdsl
python benchmarks/page_pictures.py RUN docs/images
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from wsis import predict, share
from wsis.inference import load

PHOTOS, WIDTH = 12, 1200


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run")
    arguments.add_argument("out", type=Path)
    asked = arguments.parse_args()
    data = load(asked.run).data
    index = data.index("val")
    photos = [str(index.root / image["file_name"]) for image in index.images[:PHOTOS]]
    with tempfile.TemporaryDirectory() as scratch:
        predict.main([*photos, "--run", asked.run, "--out", scratch, "--formats", "[sheet]"])
        share.main([asked.run, f"{scratch}/shared"])
        for drawn, name in (("sheet.jpg", "sheet.jpg"), ("shared/example.jpg", "shared.jpg")):
            picture = Image.open(f"{scratch}/{drawn}")
            picture.thumbnail((WIDTH, WIDTH))
            picture.save(asked.out / name, quality=75)


if __name__ == "__main__":
    main()
