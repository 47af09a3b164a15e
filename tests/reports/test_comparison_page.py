"""The page in a real browser, opened as a file: sorting, picking an image, toggling a method, and that it asks for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_runs
from chromium import browsing, one, wait
from toy_runs import make_run

from wsis import compare
from wsis.data.index import write_coco
from wsis.metrics.errors import ERRORS, Breakdown
from wsis.reports.page import write_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three methods, one with pseudo-labels, compared."""
    place = tmp_path_factory.mktemp("page")
    runs = [
        make_run(place / name, place / "shapes", name, seed)
        for seed, name in enumerate(("cam", "pdsl", "mask_rcnn"))
    ]
    index = toy_runs.shapes(place / "shapes").index("val")
    for path in (runs[1] / "train/labels.json", runs[1] / "test-val/labels.json"):
        write_coco(path, index)
    rows = compare.main([*map(str, runs), "--out", str(place / "out")])
    (place / "rows.json").write_text(json.dumps([[row.name, row.mean("AP50")] for row in rows]))
    return place


@pytest.fixture(scope="module")
def browser(place, tmp_path_factory) -> Iterator:
    with browsing(tmp_path_factory.mktemp("profile"), (1400, 1000)) as started:
        yield started


@pytest.fixture
def page(browser, place):
    browser.get((place / "out/shapes.html").as_uri())
    wait(browser, "return document.getElementById('panels').dataset.image")
    return browser


def all_of(page, selector: str) -> list:
    return page.find_elements("css selector", selector)


def column(page, table: str, number: int) -> list[str]:
    return [cell.text for cell in all_of(page, f"{table} tbody tr > :nth-child({number})")]


def press(page, keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(keys).perform()


def shown(page) -> str:
    """Name of the image in the panels, once it is painted."""
    title = one(page, "#image-title").text
    wait(page, "return document.getElementById('panels').dataset.image === arguments[0]", title)
    return title


def test_columns_sort(page, place):
    rows = json.loads((place / "rows.json").read_text())
    heads = [head.text.split()[0] for head in all_of(page, "#metrics thead th")]
    number = heads.index("AP50") + 1
    button = one(page, f"#metrics thead th:nth-child({number}) button")
    for direction in ("descending", "ascending", "descending"):
        button.click()
        ranked = sorted((value for _, value in rows), reverse=direction == "descending")
        assert column(page, "#metrics table", number) == [f"{100 * value:.1f}" for value in ranked]
        assert (
            one(page, f"#metrics thead th:nth-child({number})").get_attribute("aria-sort")
            == direction
        )
    one(page, "#metrics thead th:nth-child(1) button").click()
    assert column(page, "#metrics table", 1) == sorted(name for name, _ in rows)
    assert len(all_of(page, "#metrics th[aria-sort]")) == 1


def test_what_is_not_known_is_sorted_last(page):
    table = "#error-table table"
    page.execute_script(
        "document.querySelector('#error-table tbody').rows[0].cells[1].dataset.value = ''"
    )
    first = column(page, table, 1)[0]
    for _ in range(2):
        one(page, f"{table} thead th:nth-child(2) button").click()
        assert column(page, table, 1)[-1] == first


def test_an_image_is_picked_by_mouse_and_keys(page):
    before = page.execute_script("return document.querySelector('#panels canvas').toDataURL()")
    items = all_of(page, "#images li")
    assert len(items) == toy_runs.VAL
    items[2].click()
    name = one(page, "#images li:nth-child(3) b").text
    assert shown(page) == name
    assert items[2].get_attribute("aria-selected") == "true"
    assert len(all_of(page, "#images li[aria-selected=true]")) == 1
    assert (
        page.execute_script("return document.querySelector('#panels canvas').toDataURL()") != before
    )
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.ARROW_RIGHT)
    assert shown(page) == one(page, "#images li:nth-child(4) b").text
    press(page, Keys.ARROW_LEFT * 9)
    assert shown(page) == one(page, "#images li:nth-child(1) b").text
    one(page, "#images").click()
    press(page, Keys.END)
    assert all_of(page, "#images li")[-1].get_attribute("aria-selected") == "true"


def test_images_come_in_order_of_disagreement(page):
    def shares():
        return [
            int(text.split()[0])
            for text in (item.text for item in all_of(page, "#images li .soft"))
        ]

    assert shares() == sorted(shares(), reverse=True)
    assert shares()[0] > 0
    one(page, "#order option[value=order]").click()
    names = [b.text for b in all_of(page, "#images li b")]
    assert names == sorted(names)


def test_a_method_is_toggled_by_mouse_and_keys(page):
    panel, chip = (one(page, f"{place} [data-source=pdsl]") for place in ("#panels", "#toggles"))
    assert panel.is_displayed()
    chip.click()
    assert not panel.is_displayed()
    assert chip.get_attribute("aria-pressed") == "false"
    all_of(page, "#images li")[1].click()
    shown(page)
    assert not panel.is_displayed()
    chip.click()
    assert panel.is_displayed()
    page.execute_script("document.activeElement.blur()")
    first = page.execute_script("return data.sources.find((s) => s.role === 'method').name")
    press(page, "1")
    assert not one(page, f"#panels [data-source={first}]").is_displayed()
    press(page, "t")
    assert not one(page, "#panels [data-source=truth]").is_displayed()


def test_panels_show_masks_where_they_are(page, place):
    """Painted pixels are those of the truth's masks, and their edges and names."""
    one(page, "#names").click()
    name = shown(page)
    changed = page.execute_script("""
        const canvas = document.querySelector('#panels [data-source=truth] canvas');
        const plain = document.createElement('canvas');
        [plain.width, plain.height] = [canvas.width, canvas.height];
        plain.getContext('2d').drawImage(pictureOf(state.shown[state.at]), 0, 0, plain.width, plain.height);
        const [a, b] = [canvas, plain].map((c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data);
        const bits = [];
        for (let y = 0; y < 64; y++) for (let x = 0; x < 64; x++) {
          const [row, place] = [y, x].map((k, i) => Math.floor((k + 0.5) * [canvas.height, canvas.width][i] / 64));
          const at = 4 * (row * canvas.width + place);
          bits.push(Math.abs(a[at] - b[at]) + Math.abs(a[at + 1] - b[at + 1]) + Math.abs(a[at + 2] - b[at + 2]) > 6);
        }
        return bits;
    """)
    import numpy as np
    from pycocotools import mask as rle_masks

    index = toy_runs.shapes(place / "shapes").index("val")
    (image,) = [i for i in index.images if i["file_name"] == name]
    there = rle_masks.decode(
        rle_masks.merge([a["segmentation"] for a in index.annotations[image["id"]]])
    )
    at = ((np.arange(64) + 0.5) * image["height"] / 64).astype(int)
    expected, painted = there[np.ix_(at, at)].astype(bool), np.array(changed).reshape(64, 64)
    assert (expected & painted).sum() / (expected | painted).sum() > 0.85


def test_pseudo_labels_have_a_panel(page):
    names = [figure.get_attribute("data-source") for figure in all_of(page, "#panels figure")]
    assert names[:2] == ["truth", "pseudo-labels of pdsl"]
    assert sorted(names[2:]) == ["cam", "mask_rcnn", "pdsl"]
    labels = {
        f.get_attribute("data-source"): f.find_element("tag name", "canvas").get_attribute(
            "aria-label"
        )
        for f in all_of(page, "#panels figure")
    }
    assert labels["truth"].removeprefix("truth: ").split("; ")[0] in labels["pseudo-labels of pdsl"]
    assert all(label.startswith(f"{name}: ") for name, label in labels.items())


def test_classes_and_colours_can_be_chosen(page):
    before = column(page, "#class-table table", 2)
    one(page, "#class-metric option[value=AP75]").click()
    assert column(page, "#class-table table", 2) != before
    canvas = "return document.querySelector('#panels [data-source=cam] canvas').toDataURL()"
    one(page, "#unsure").click()
    by_class = page.execute_script(canvas)
    one(page, "#colour option[value=kind]").click()
    assert page.execute_script(canvas) != by_class
    for option in all_of(page, "#class-filter option")[1:3]:
        option.click()
        said = [f.get_attribute("aria-label") for f in all_of(page, "#panels canvas")]
        assert not all_of(page, "#images li") or any(option.text in label for label in said)


def test_dark_and_light(page):
    def paper(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    assert paper("light") > 700 > 100 > paper("dark")


def test_nothing_is_asked_for_and_nothing_goes_wrong(browser, place):
    browser.get_log("performance")
    browser.get_log("browser")
    address = (place / "out/shapes.html").as_uri()
    browser.get(address)
    wait(browser, "return document.getElementById('panels').dataset.image")
    all_of(browser, "#images li")[-1].click()
    shown(browser)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    }
    assert address in asked
    own = ("data:", "chrome:")  # the browser's own pages, where it is slow to start
    assert not [url for url in asked if url != address and not url.startswith(own)]
    assert not browser.get_log("browser")
    refused = browser.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org').then(() => done(false), () => done(true))"
    )
    assert refused  # by the page's own policy
    assert any(
        "Content Security Policy" in entry["message"] for entry in browser.get_log("browser")
    )


def test_a_panel_is_enlarged_and_esc_closes_it(page):
    from selenium.webdriver.common.keys import Keys

    name, panel = shown(page), one(page, "#panels [data-source=pdsl] canvas")
    width = panel.size["width"]
    panel.click()
    assert one(page, "#zoom").is_displayed()
    assert one(page, "#panels [data-source=pdsl] canvas").size["width"] > 1.5 * width
    assert not one(page, "#panels [data-source=truth]").is_displayed()
    press(page, Keys.ARROW_RIGHT)
    assert shown(page) != name
    press(page, Keys.ESCAPE)
    assert not one(page, "#zoom").is_displayed()
    wait(page, "return document.querySelector('.viewer #panels')")  # the close event comes later
    assert one(page, ".viewer #panels [data-source=truth]").is_displayed()
    assert one(page, "#panels [data-source=pdsl] canvas").size["width"] == width


SWIPE = """
    const [part, across, down] = [document.getElementById('stage'), ...arguments];
    const at = (x, y) => new Touch({identifier: 1, target: part, clientX: x, clientY: y});
    part.dispatchEvent(new TouchEvent('touchstart', {touches: [at(200, 200)]}));
    part.dispatchEvent(new TouchEvent('touchend', {changedTouches: [at(200 + across, 200 + down)]}));
"""


def test_buttons_and_fingers_turn_to_the_next_image(page):
    names = [b.text for b in all_of(page, "#images li b")]
    assert not one(page, "#previous").is_enabled()
    one(page, "#next").click()
    assert shown(page) == names[1]
    page.execute_script(SWIPE, -90, 10)
    assert shown(page) == names[2]
    page.execute_script(SWIPE, -90, 200)  # the page is scrolled
    page.execute_script(SWIPE, -20, 0)
    assert shown(page) == names[2]
    page.execute_script(SWIPE, 90, 0)
    one(page, "#previous").click()
    assert shown(page) == names[0]


@pytest.fixture
def report(place, browser):
    """The page of a single run."""
    compare.main([str(place / "cam"), "--out", str(place / "one")])
    browser.get((place / "one/shapes.html").as_uri())
    wait(browser, "return document.querySelectorAll('#images canvas[aria-label]').length > 3")
    return browser


def test_pictures_of_one_run_are_tiles_that_open(report):
    from selenium.webdriver.common.keys import Keys

    items = all_of(report, "#images li")
    assert len({item.location["y"] for item in items}) < len(items) / 2, "several in a row"
    assert not one(report, "#panels").is_displayed()
    items[3].click()
    name = items[3].find_element("css selector", "b").get_property("textContent")
    assert shown(report) == name
    assert one(report, "#panels [data-source=truth]").is_displayed()
    assert one(report, "#panels [data-source=cam]").is_displayed()
    one(report, "#panels [data-source=cam] canvas").click()
    assert not one(report, "#panels [data-source=truth]").is_displayed()
    press(report, Keys.ESCAPE)
    assert not one(report, "#panels").is_displayed()
    assert not report.get_log("browser")


def test_one_run_differs_from_the_truth_alone(report):
    said = report.execute_script("return document.body.innerText")
    assert "disagree" not in said
    assert "apart" not in said
    shares = [int(item.text.split()[0]) for item in all_of(report, "#images li .soft")]
    assert shares == sorted(shares, reverse=True)
    one(report, "#order option[value=name]").click()
    names = [b.text for b in all_of(report, "#images li b")]
    assert names == sorted(names)
    one(report, "#order option[value=score]").click()
    scores = [float(item.text.split()[1]) for item in all_of(report, "#images li .soft")]
    assert scores == sorted(scores, reverse=True)


def test_settings_of_a_run_are_on_its_page(report):
    (cells,) = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in all_of(report, "#settings tbody tr")
    ]
    assert {"cam", "random", "test_byobnet", "abc1234567"} <= {*cells}
    assert any("shapes/cam.yaml" in cell for cell in cells)


@pytest.mark.parametrize("kind", ["out", "one"])
def test_a_phone_has_pictures_below_a_strip_and_no_sideways_page(kind, place, report):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    report.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        report.get((place / kind / "shapes.html").as_uri())
        wide = "return document.documentElement.scrollWidth"
        assert report.execute_script(wide) == 390
        title = "document.querySelector('h1').textContent = 'runs/pdsl/' + '0123456789'.repeat(9);"
        assert report.execute_script(title + wide) == 390
        if kind == "out":
            assert one(report, ".list").size["height"] < 120
    finally:
        report.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_in_small_tiles_lie_apart(report):
    """Twenty objects of the picture's size: names that find no place are left out."""
    report.execute_script("""
        window.plates = [];
        const fill = CanvasRenderingContext2D.prototype.fillRect;
        CanvasRenderingContext2D.prototype.fillRect = function (...box) { window.plates.push(box); fill.apply(this, box); };
        const canvas = document.querySelector('#images canvas');
        const ring = Uint8Array.from([5, 5, 200, 5, 200, 200, 5, 200]);
        const things = Array.from({ length: 20 }, (_, k) => ({ label: k % 8, score: 90, kind: -1, sure: 1, rings: [ring] }));
        paint(canvas, pictureOf(state.shown[0]), state.shown[0], data.sources[methods[0]], things, null);
    """)
    plates = report.execute_script("return window.plates")
    assert 1 <= len(plates) < 20
    for i, (x, y, width, height) in enumerate(plates):
        for u, v, w, h in plates[:i]:
            assert x >= u + w or u >= x + width or y >= v + h or v >= y + height


def test_without_pictures_there_is_nothing_to_pick(place, browser, tmp_path):
    compare.main([str(place / "cam"), "--out", str(tmp_path), "--images", "0"])
    browser.get((tmp_path / "shapes.html").as_uri())
    assert "No pictures were asked for." in one(browser, "#gallery").text
    assert not all_of(browser, "#gallery .controls, #gallery .viewer")
    assert not browser.get_log("browser")


def test_names_cannot_become_code(place, browser, tmp_path):
    runs = [place / "cam", place / "pdsl"]
    rows = compare.main([*map(str, runs), "--out", str(tmp_path), "--images", "0"])
    evil = "</script><script>document.title = 'taken'</script><!--"
    import dataclasses

    first = dataclasses.replace(rows[0].first, folder=tmp_path, per_class={evil: {"AP50": 0.5}})
    facts = {**rows[0].facts, "config": evil}
    rows[0] = dataclasses.replace(rows[0], name=evil, entries=[first], facts=facts)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.csv").write_text(f"step,{evil}\n0,1\n1,2\n")
    errors = [Breakdown(0.5, dict.fromkeys(ERRORS, 0.1), dict.fromkeys(ERRORS, 1), 0.5, []), None]
    gallery = {
        "images": [],
        "points": "",
        "grid": 255,
        "sources": [{"name": evil, "role": "method", "row": 0}],
        "orders": [],
    }
    write_page(tmp_path / "evil.html", rows, errors, gallery)
    browser.get((tmp_path / "evil.html").as_uri())
    assert evil in one(browser, "#metrics tbody").text
    assert evil in one(browser, "#settings tbody").text
    assert evil in one(browser, "#class-table").text
    assert evil in one(browser, "#runs summary").text
    browser.execute_script("document.querySelector('#runs details').open = true")
    assert evil in one(browser, "#runs figcaption").text
    assert browser.title != "taken"
