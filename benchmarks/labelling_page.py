"""A picture of the labelling page on generated data, of a desktop or a phone; needs chromium and selenium.

python benchmarks/labelling_page.py OUT.jpg [--phone] [--dark] [--read_only]

Of the objects of the photo, one has a box and one a point, and the masks of the others are suggested.
The page that is only to look at (--read_only) has no labels.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from threading import Thread

import waitress
from annotator import write_photos
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from wsis.datasets.shapes import Shapes
from wsis.serve.app import create_app
from wsis.serve.guard import access_for
from wsis.serve.labels import version_of
from wsis.serve.store import Store
from wsis.serve.suggestions import Found
from wsis.serve.training import Recipe, Training

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SIZES = {False: (1280, 800, 1), True: (390, 844, 2)}
"""Width, height and pixels per pixel, of a phone or not."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--phone", action="store_true")
    arguments.add_argument("--dark", action="store_true")
    arguments.add_argument("--read_only", action="store_true")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = serve(Path(folder), asked.read_only)
        address = f"http://127.0.0.1:{server.effective_port}/"
        picture = photograph(address, asked.phone, asked.dark)
        server.close()
    picture.convert("RGB").save(asked.out, quality=88)


def serve(folder: Path, read_only: bool = False):
    """Serve twelve images in a thread, the one with most objects first."""
    data = Shapes(folder / "shapes", train=12, val=1)
    truth = write_photos(folder / "photos", data)
    classes = [category["name"] for category in data.index("train").categories]
    store = Store(folder / "photos", classes=classes)
    training = Training(store.root, Recipe("pdsl"), runs=folder / "runs")
    first = max(store.names, key=lambda name: len(truth[name]))
    known, *found = sorted(truth[first], key=lambda thing: thing["bbox"])
    suggested = [{**t, "score": 0.9 - 0.11 * k} for k, t in enumerate(found)]
    training.found = Found(Path("runs/pdsl"), 0.3, {first: suggested})
    if not read_only:
        _label(store, first, known, found[-1])
    app = create_app(store, training, access_for("127.0.0.1", 0, read_only=read_only))
    server = waitress.create_server(app, host="127.0.0.1", port=0)
    Thread(target=server.run, daemon=True).start()
    return server


def _label(store: Store, name: str, boxed: dict, pointed: dict) -> None:
    """Put a box around one object and a point on another."""
    x, y, width, height = pointed["bbox"]
    objects = [{"name": boxed["name"], "bbox": boxed["bbox"]}]
    objects += [{"name": pointed["name"], "points": [[x + width / 2, y + height / 2, 1]]}]
    label = {**store.label(name), "objects": objects}
    store.put(name, version_of(store.label(name)), label)


def photograph(address: str, phone: bool, dark: bool) -> Image.Image:
    """Open an address in a headless browser and return what it shows."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    width, height, scale = SIZES[phone]
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(address)
        drawn = "return document.getElementById('picture').dataset.drawn"
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn))
        return Image.open(io.BytesIO(browser.get_screenshot_as_png()))


if __name__ == "__main__":
    main()
