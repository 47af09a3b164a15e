"""The page in a real browser: clicks, keys, touch, two browsers, names that are scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

import waitress
from chromium import browsing, one, wait
from PIL import Image, ImageDraw
from test_store import square

from wsis.serve.__main__ import _listening
from wsis.serve.app import create_app
from wsis.serve.guard import access_for
from wsis.serve.labels import version_of
from wsis.serve.store import Store
from wsis.serve.suggestions import Found
from wsis.serve.training import Recipe, Training

pytestmark = pytest.mark.slow

BAD = "<img src=x onerror=document.title='broken'>"
MASK = square()
FOUND = {"name": "cat", "score": 0.9, "bbox": [10.0, 5.0, 20.0, 10.0], "segmentation": MASK}
FOUND_DOG = [40, 20, 10, 10]
NAMES = ["a.jpg", "b.jpg", "c.jpg"]


class Served:
    """A server in a thread, with its store."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        for name in NAMES:
            (folder / "photos").mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (60, 40), "darkgreen")
            ImageDraw.Draw(picture).rectangle((10, 5, 29, 14), "orange")
            picture.save(folder / "photos" / name)
        self.store = Store(folder / "photos", classes=["cat", "dog", BAD])
        training = Training(self.store.root, Recipe("cam"), runs=folder / "runs")
        again = {**FOUND, "name": "dog", "bbox": [40.0, 20.0, 10.0, 10.0], "segmentation": None}
        training.found = Found(Path("run"), 0.5, {name: [FOUND, again] for name in NAMES})
        listener = _listening("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        access = access_for("127.0.0.1", self.port, read_only=read_only)
        app = create_app(self.store, training, access, "name")
        self.server = waitress.create_server(app, sockets=[listener], threads=4)
        Thread(target=self.server.run, daemon=True).start()

    def label(self, name: str) -> dict:
        """What is on disk."""
        content = json.loads((self.store.root / "labels.json").read_text())
        begun = {b["file_name"]: b["label"] for b in content["wsis"]["begun"]}
        return begun.get(name) or self.store.label(name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    with browsing(tmp_path_factory.mktemp("profile"), (1300, 900)) as started:
        started.set_window_size(1300, 900)
        yield started


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.server.close()
    served.store.close()


@pytest.fixture
def page(browser, served):
    browser.get(f"http://127.0.0.1:{served.port}/")
    drawn(browser, "a.jpg")
    return browser


def drawn(browser, name: str) -> None:
    wait(browser, "return document.getElementById('picture').dataset.drawn === arguments[0]", name)


def until(check):
    """Wait for what a click does to the disk."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(None, 30, ignored_exceptions=(FileNotFoundError, KeyError)).until(
        lambda _: check()
    )


def press(page, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def click(page, x: float, y: float) -> None:
    """Click a place in pixels of the photo."""
    from selenium.webdriver import ActionChains

    canvas = one(page, "#picture")
    size = canvas.size
    right, down = (x / 60 - 0.5) * size["width"], (y / 40 - 0.5) * size["height"]
    ActionChains(page).move_to_element_with_offset(
        canvas, round(right), round(down)
    ).click().perform()


def test_a_click_is_a_point_and_two_are_a_box(page, served):
    click(page, 20, 10)
    (thing,) = until(lambda: served.label("a.jpg")["objects"])
    assert thing["name"] == "cat"
    (x, y, inside), *_ = thing["points"]
    assert (x, y, inside) == (pytest.approx(20, abs=0.3), pytest.approx(10, abs=0.3), 1)
    press(page, "2", "b")
    click(page, 40, 30)
    click(page, 30, 20)
    _, box = until(
        lambda: len(served.label("a.jpg")["objects"]) == 2 and served.label("a.jpg")["objects"]
    )
    assert box["name"] == "dog"
    assert box["bbox"] == [pytest.approx(side, abs=0.4) for side in (30, 20, 10, 10)]
    assert served.label("a.jpg")["tags"] == ["cat", "dog"]


def test_keys_alone_label_everything(page, served):
    from selenium.webdriver.common.keys import Keys

    press(page, "x")  # the cat is none
    (refused,) = until(lambda: served.label("a.jpg")["refused"])
    assert refused["name"] == "cat"
    press(page, "a")
    (dog,) = until(lambda: served.label("a.jpg")["objects"])
    assert (dog["name"], dog["bbox"], dog["source"]) == ("dog", FOUND_DOG, "run")
    press(page, "u")
    until(lambda: served.label("a.jpg")["objects"] == [])
    press(page, "1", "p", "i", Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ENTER)
    (thing,) = until(lambda: served.label("a.jpg")["objects"])
    assert thing["points"] == [[31, 21, 1]]  # a pixel from the middle
    press(page, "d")
    drawn(page, "b.jpg")
    assert until(lambda: served.label("a.jpg")["done"])
    press(page, "n")
    drawn(page, "c.jpg")
    assert not served.store.label("b.jpg")["done"]
    press(page, Keys.BACKSPACE)
    drawn(page, "b.jpg")


def test_tags_are_boxes_to_tick(page, served):
    box = one(page, "#tags li:nth-child(2) input")
    box.click()
    until(lambda: served.label("a.jpg")["tags"] == ["dog"])
    one(page, "#tags li:nth-child(2) input").click()
    until(lambda: served.label("a.jpg")["tags"] == [])


def test_a_place_where_something_is_not(page, served):
    press(page, "m")
    click(page, 45, 25)
    (refused,) = until(lambda: served.label("a.jpg")["refused"])
    assert refused["name"] == "dog"
    assert len(page.find_elements("css selector", "#suggestions button.name")) == 1


def test_another_browser_was_faster(page, served):
    label = served.store.label("a.jpg")
    served.store.put("a.jpg", version_of(label), {**label, "tags": ["dog"]})
    press(page, "1")
    wait(page, "return document.getElementById('status').textContent.includes('elsewhere')")
    assert served.label("a.jpg")["tags"] == ["dog"]
    assert one(page, "#tags li:nth-child(2) input").is_selected()
    press(page, "1")  # now it is known
    until(lambda: served.label("a.jpg")["tags"] == ["cat", "dog"])


def test_fast_keys_are_about_what_is_left_by_those_before(page, served):
    page.execute_script(
        "for (const key of 'xauda') document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    )
    drawn(page, "b.jpg")
    label = served.label("a.jpg")
    assert [refused["name"] for refused in label["refused"]] == ["cat"]
    assert (label["objects"], label["done"]) == ([], True)
    assert served.store.label("b.jpg")["objects"] == []  # the last key was about the photo before


def test_a_double_click_is_one_answer(page, served):
    page.execute_script(
        "const button = document.querySelector('[data-key=\"accept 0\"]'); button.click(); button.click()"
    )
    until(lambda: served.label("a.jpg")["objects"])
    press(page, "d")
    drawn(page, "b.jpg")
    (cat,) = served.label("a.jpg")["objects"]
    assert cat["segmentation"] == MASK
    press(page, "\ue003")  # back
    drawn(page, "a.jpg")
    page.execute_script(
        "const button = document.querySelector('[data-key=\"object 0\"]'); button.click(); button.click()"
    )
    until(lambda: served.label("a.jpg")["objects"] == [])
    press(page, "u", "u")
    until(
        lambda: (
            served.label("a.jpg")["done"] is False and len(served.label("a.jpg")["objects"]) == 1
        )
    )


def test_fast_clicks_are_all_there_in_order(page, served):
    page.execute_script(
        "const canvas = document.getElementById('picture'), box = canvas.getBoundingClientRect();"
        "for (let k = 0; k < 30; k++) canvas.dispatchEvent(new MouseEvent('click', {clientX: box.left + 5 + 9 * k, clientY: box.top + 9}))"
    )
    until(lambda: len(served.label("a.jpg")["objects"]) == 30)
    places = [thing["points"][0][0] for thing in served.label("a.jpg")["objects"]]
    assert places == sorted(places)


def test_names_run_no_script_and_nothing_is_asked_of_others(page, served):
    assert BAD in one(page, "#tags").text
    form = one(page, "#class-name")
    form.send_keys("<script>document.title='broken'</script>\n")
    until(lambda: len(served.store.classes) == 4)
    wait(page, "return document.querySelectorAll('#tags li').length === 4")
    press(page, "\ue00c")
    assert page.title == "wsis: labels"
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    own = ("http://127.0.0.1:", "data:", "chrome:")  # the browser's own pages, too
    assert not [url for url in asked if not url.startswith(own)]
    assert not [
        entry for entry in page.get_log("browser") if "Content Security" in entry["message"]
    ]


def test_without_the_server_a_click_is_known_to_be_lost(page, served):
    served.server.close()
    served.server.task_dispatcher.shutdown()
    page.execute_script("window.fetch = () => Promise.reject(new TypeError('down'))")
    click(page, 20, 10)
    wait(page, "return document.getElementById('status').className === 'wrong'")
    assert "not saved" in one(page, "#status").text


def test_on_a_phone(browser, served):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        browser.get(f"http://127.0.0.1:{served.port}/")
        drawn(browser, "a.jpg")
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390  # nothing beside the screen
        box = one(browser, "#picture").rect
        assert box["width"] > 350
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        browser.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]}
        )
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        (thing,) = until(lambda: served.label("a.jpg")["objects"])
        assert thing["points"][0][:2] == [pytest.approx(30, abs=0.5), pytest.approx(20, abs=0.5)]
        for button in browser.find_elements("css selector", "nav.bar button"):
            assert button.rect["height"] >= 40  # a finger's width
            assert button.rect["y"] + button.rect["height"] <= 844
        one(browser, "#done").click()
        drawn(browser, "b.jpg")
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def looked_at(browser, tmp_path) -> Iterator:
    """A page that is only to look at, and its folder."""
    served = Served(tmp_path, read_only=True)
    browser.get(f"http://127.0.0.1:{served.port}/")
    drawn(browser, "a.jpg")
    yield browser, served.store.root
    served.server.close()
    served.store.close()


def test_who_only_looks_sees_all_photos_and_changes_none(looked_at):
    from selenium.webdriver import Keys

    page, folder = looked_at
    for selector in ("#done", "#accept", "#refuse", "#undo", "#clicks", "#training", ".small"):
        assert not one(page, selector).is_displayed(), selector
    assert one(page, "#progress").text == "1 of 3"
    names = [row.text for row in page.find_elements("css selector", "#suggestions .name")]
    assert names == ["cat", "dog"]
    click(page, 45, 25)
    assert "dog" in one(page, "#suggestions .current").text
    press(page, "a", "x", "1", "d", "A", "u")
    for key, name in ((Keys.ARROW_RIGHT, "b.jpg"), ("n", "c.jpg"), ("n", "a.jpg")):
        press(page, key)
        drawn(page, name)
    press(page, Keys.BACKSPACE)
    drawn(page, "c.jpg")
    assert one(page, "#progress").text == "3 of 3"
    assert one(page, "#status").text == ""
    assert sorted(path.name for path in folder.iterdir()) == NAMES
