"""Labels on disk: read back by `--data folder`, conflicts, kills, files of other tools."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.serve.labels import EMPTY, checked, version_of
from wsis.serve.store import Conflict, Store

WIDTH, HEIGHT = 60, 40
CLASSES = ("cat", "dog", "Katze & <b>")


def write_photos(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{k}.jpg" for k in range(count)]
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), "green").save(folder / name)
    return names


@pytest.fixture
def photos(tmp_path) -> Path:
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def store(photos):
    store = Store(photos, classes=CLASSES)
    yield store
    store.close()


def change(store: Store, name: str, **fields):
    """Put a label with some fields changed, as one page after another would."""
    label = store.label(name)
    return store.put(name, version_of(label), {**label, **fields})


def square() -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[5:15, 10:30] = 1
    encoded = rle.encode(mask)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def test_others_may_read_a_folder_that_is_labelled(store, photos):
    """The one who reads sees each change, and deletes no file that is being written."""
    scratch = photos / ".labels.json.0123abcd"
    scratch.write_text("half")
    reader = Store(photos, classes=["cow"], read_only=True)
    assert scratch.exists()
    assert reader.label("0.jpg")["tags"] == []
    for name in ("cat", "dog"):
        change(store, "0.jpg", tags=[name])
        assert reader.label("0.jpg")["tags"] == [name]
    assert reader.classes == [*CLASSES, "cow"]
    reader.close()
    with pytest.raises(InputError, match="another process labels"):
        Store(photos)


def test_the_folder_reads_what_is_written(store, photos):
    change(store, "0.jpg", done=True, tags=["dog"], objects=[
        {"name": "cat", "bbox": [1, 2, 10, 20]},
        {"name": "cat", "points": [[5, 6, 1], [50, 30, 0]]},
        {"name": "dog", "segmentation": square()},
    ])  # fmt: skip
    change(store, "1.jpg", done=True, tags=[])
    change(store, "2.jpg", done=False, tags=["cat"])
    index = Folder(photos, labels="labels.json").index("train")
    tags = {image["file_name"]: index.tags[image["id"]] for image in index.images}
    assert [category["name"] for category in index.categories] == list(CLASSES)
    assert tags == {"0.jpg": [0, 1], "1.jpg": []}  # what is begun is not learned from
    boxes = [a["bbox"] for a in index.annotations[index.images[0]["id"]] if "points" not in a]
    assert boxes == [[1, 2, 10, 20], [10, 5, 20, 10]]
    of_table = Folder(photos).index("train")  # labels.csv comes first
    assert {i["file_name"]: of_table.tags[i["id"]] for i in of_table.images} == tags
    annotations = json.loads((photos / "labels.json").read_text())["annotations"]
    assert [a["points"] for a in annotations if "points" in a] == [[[5, 6, 1], [50, 30, 0]]]


def test_everything_is_there_after_a_restart(store, photos):
    change(store, "0.jpg", done=True, refused=[{"name": "dog", "point": [3, 4]}],
           objects=[{"name": "cat", "bbox": [1, 2, 3, 4], "score": 0.5, "source": "a run"}])  # fmt: skip
    change(store, "1.jpg", tags=["cat"], objects=[{"name": "dog", "points": [[1, 1, 1]]}])
    store.add_class("bird")
    before = {name: store.label(name) for name in store.names}
    store.close()
    again = Store(photos)
    assert {name: again.label(name) for name in again.names} == before
    assert again.classes == [*CLASSES, "bird"]
    assert again.done == 1
    store._folder = again._folder  # closed by the fixture


coordinates = st.tuples(st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1))
points = st.builds(lambda at, label: [*at, label], coordinates, st.sampled_from([0, 1]))
things = st.builds(
    lambda name, at, size, more, flag: {
        "name": name,
        "bbox": [*at, *size],
        "points": more,
        "iscrowd": flag,
    },
    st.sampled_from(CLASSES),
    coordinates,
    st.tuples(st.floats(1, 30), st.floats(1, 30)),
    st.lists(points, max_size=3),
    st.sampled_from([0, 1, None]),
)
labels = st.fixed_dictionaries(
    {
        "done": st.booleans(),
        "tags": st.lists(st.sampled_from(CLASSES)),
        "objects": st.lists(things, max_size=4),
        "refused": st.lists(
            st.builds(
                lambda n, p: {"name": n, "point": [*p]}, st.sampled_from(CLASSES), coordinates
            )
        ),
    }
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(label=labels)
def test_any_label_is_read_back_with_its_version(store, photos, label):
    stored = change(store, "0.jpg", **label)
    store._read()
    assert store.label("0.jpg") == stored
    assert version_of(store.label("0.jpg")) == version_of(stored)


def test_a_second_browser_does_not_overwrite(store):
    seen = version_of(store.label("0.jpg"))
    store.put("0.jpg", seen, {**EMPTY, "tags": ["cat"]})
    with pytest.raises(Conflict):
        store.put("0.jpg", seen, {**EMPTY, "tags": ["dog"]})
    assert store.label("0.jpg")["tags"] == ["cat"]
    store.put("1.jpg", seen, {**EMPTY, "tags": ["dog"]})  # of another image


def test_of_many_at_once_one_wins_and_all_others_hear_of_it(store):
    seen = version_of(store.label("0.jpg"))

    def click(k: int) -> bool:
        try:
            store.put("0.jpg", seen, {**EMPTY, "objects": [{"name": "cat", "points": [[k, k, 1]]}]})
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(click, range(16))) == 1


def test_one_process_at_a_time(store, photos):
    with pytest.raises(InputError, match="another process labels"):
        Store(photos)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tags": ["horse"]}, 'unknown class "horse"'),
        ({"tags": "cat"}, "0.jpg: tags is 'cat'"),
        ({"objects": [{"name": "cat"}]}, "neither a box, nor a mask, nor a point"),
        ({"objects": [{"name": "cat", "points": [[1, 1, 0]]}]}, "nor a point in it"),
        ({"objects": [{"name": "cat", "points": [[60, 1, 1]]}]}, "is not a point"),
        ({"objects": [{"name": "cat", "points": [[1, 1, 2]]}]}, "is not a point"),
        ({"objects": [{"name": "cat", "bbox": [70, 1, 5, 5]}]}, "is not a box"),
        ({"objects": [{"name": "cat", "bbox": [1, 1, 5]}]}, "is not a box"),
        ({"objects": [{"name": "cat", "bbox": [1, 1, 0, 5]}]}, "is not a box"),
        ({"objects": [{"name": "cat", "segmentation": [[1, 1, 2, 2]]}]}, "three corners"),
        ({"objects": [{"name": "cat", "segmentation": {"size": [9, 9], "counts": "0"}}]}, "mask"),
        ({"refused": [{"name": "cat", "point": [1]}]}, "is not a point"),
        ({"objects": [{"name": "cat", "points": [[1, 1, 1]]}] * 1001}, "label fewer"),
        ({"done": None}, "done is None"),
    ],
)
def test_what_is_no_label_is_refused_and_nothing_written(store, photos, fields, says):
    with pytest.raises(InputError) as error:
        change(store, "0.jpg", **fields)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in photos.iterdir() if p.suffix != ".jpg"] == []


@pytest.mark.parametrize(
    "name", ["", "  ", "a;b", "a,b", "a|b", "a\x00", "none", "#N/A", "x" * 101]
)
def test_impossible_class_names(store, name):
    with pytest.raises(InputError):
        store.add_class(name)
    assert store.classes == list(CLASSES)


def test_a_class_is_there_once(store):
    with pytest.raises(InputError, match="already"):
        store.add_class(" cat ")


def test_labels_of_others_are_taken_over_and_kept(photos):
    original = "image;label\n0.jpg;cat|dog\n1.jpg;\n"
    (photos / "labels.csv").write_text(original)
    store = Store(photos)
    assert store.classes == ["cat", "dog"]
    assert store.label("0.jpg")["tags"] == ["cat", "dog"]
    assert [store.label(name)["done"] for name in store.names] == [True, True, False]
    assert not (photos / "labels.json").exists()  # looking writes nothing
    change(store, "2.jpg", done=True, tags=["dog"])
    store.close()
    assert (photos / "labels.csv.before").read_text() == original
    rows = list(csv.reader((photos / "labels.csv").open()))
    assert rows == [["file", "tags"], ["0.jpg", "cat;dog"], ["1.jpg", ""], ["2.jpg", "dog"]]


def test_a_coco_file_of_a_label_tool_keeps_its_ids(photos):
    image = {"id": 70, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}
    annotation = {"id": 1, "image_id": 70, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 1}
    content = {
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 9, "name": "cat"}],
    }
    (photos / "labels.json").write_text(json.dumps(content))
    store = Store(photos)
    change(store, "0.jpg", done=True)
    store.close()
    written = json.loads((photos / "labels.json").read_text())
    assert {i["file_name"]: i["id"] for i in written["images"]} == {"1.jpg": 70, "0.jpg": 71}
    assert written["categories"] == content["categories"]
    (one,) = written["annotations"]
    assert one == {**annotation, "area": 12.0}
    assert json.loads((photos / "labels.json.before").read_text()) == content


def test_validation_and_test_images_are_not_labelled(photos):
    write_photos(photos / "test")
    write_photos(photos / "images_val")
    (photos / "val.csv").write_text("2.jpg,cat\n")
    store = Store(photos)
    assert store.names == ["0.jpg", "1.jpg"]
    store.close()


def test_what_another_program_writes_is_read(store, photos):
    change(store, "0.jpg", done=True, tags=["cat"])
    seen = version_of(store.label("0.jpg"))
    content = json.loads((photos / "labels.json").read_text())
    content["annotations"] = []
    (photos / "labels.json").write_text(json.dumps(content))
    assert store.label("0.jpg")["tags"] == []
    with pytest.raises(Conflict):
        store.put("0.jpg", seen, EMPTY)


def test_an_edited_table_is_not_overwritten(store, photos):
    change(store, "0.jpg", done=True, tags=["cat"])
    store.close()
    table = photos / "labels.csv"
    table.write_text("file,tags\n0.jpg,dog\n")
    later = (photos / "labels.json").stat().st_mtime + 5
    os.utime(table, (later, later))
    with pytest.raises(InputError, match="was changed after"):
        Store(photos)
    os.utime(table, (later - 60, later - 60))  # as after a kill before it was written
    again = Store(photos)
    assert again.label("0.jpg")["tags"] == ["cat"]
    store._folder = again._folder


def test_a_full_disk_leaves_the_labels_as_they_were(store, photos, monkeypatch):
    change(store, "0.jpg", tags=["cat"])
    content = (photos / "labels.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="free space"):
        change(store, "0.jpg", tags=["dog"])
    assert store.label("0.jpg")["tags"] == ["cat"]
    assert (photos / "labels.json").read_bytes() == content


def test_labels_are_those_of_an_upright_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    store = Store(tmp_path, classes=["cat"])
    assert store.size("a.jpg") == (30, 20)
    store.close()


def test_checked_takes_what_it_returns():
    thing = {"name": "cat", "bbox": [1, 2, 3, 4], "iscrowd": 0, "points": []}
    given = {**EMPTY, "objects": [thing]}
    once = checked(given, (HEIGHT, WIDTH), CLASSES, "a.jpg")
    assert once["tags"] == ["cat"]
    assert once["objects"] == [{"name": "cat", "bbox": [1, 2, 3, 4]}]
    assert checked(once, (HEIGHT, WIDTH), CLASSES, "a.jpg") == once


CLICKS = """
import sys
from pathlib import Path
from wsis.serve.labels import version_of
from wsis.serve.store import Store

store = Store(Path(sys.argv[1]), classes=["cat"])
k = 0
while True:
    label = store.label("0.jpg")
    made = {"name": "cat", "points": [[k % 60, k // 60 % 40, 1]]}
    objects = [*label["objects"], made][-500:]
    store.put("0.jpg", version_of(label), {**label, "done": k % 2 == 0, "objects": objects})
    print(k, flush=True)
    k += 1
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_at_most_the_click_in_flight(photos):
    draw = random.Random(0)
    for _ in range(4):
        for left in ("labels.json", "labels.csv"):
            (photos / left).unlink(missing_ok=True)
        command = [sys.executable, "-c", CLICKS, str(photos)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        answered = int(["0", *process.stdout.read().split()][-1])
        process.wait()
        store = Store(photos)
        last = store.label("0.jpg")["objects"][-1]["points"][0]
        k = int(last[0]) + 60 * int(last[1])
        assert k in (answered % 2400, (answered + 1) % 2400)
        assert not list(photos.glob(".labels*"))
        store.close()
