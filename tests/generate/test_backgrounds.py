"""From images to backgrounds with parts of our own: what is kept, repeated, left out."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.errors import InputError
from wsis.generate._progress import open_progress
from wsis.generate.backgrounds import Backgrounds, found_in


class Teller:
    """Tells the shade of an image."""

    def __init__(self, captions=("a dog on {}", "an empty {} room")):
        self.settings, self.captions, self.calls = {"model": "teller"}, captions, 0

    def __call__(self, image, seed):
        self.calls += 1
        return [
            caption.format(f"shade {np.asarray(image).mean():.0f}") for caption in self.captions
        ]


class Dauber:
    """Paints two halves whose shades its seed and caption decide; the left one is how much of a class is to be seen."""

    def __init__(self, stop_after=None, blank=(), nothing=(), settings=None):
        self.settings, self.calls, self.stop_after = settings or {"model": "dauber"}, [], stop_after
        self.blank, self.nothing = blank, nothing

    def __call__(self, caption, seeds):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(caption)
        pictures = []
        for k, seed in enumerate(seeds):
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[:, :8], pixels[:, 8:] = shades(caption, seed)
            pictures.append(
                None if k in self.nothing else Image.fromarray(pixels * (k not in self.blank))
            )
        return pictures


class Judge:
    """The left half is the likeness to every class, the right one that to the caption."""

    def __init__(self):
        self.settings, self.texts, self.calls = {"model": "judge"}, [], 0

    def __call__(self, images, texts):
        self.calls += 1
        self.texts.append(texts)
        left, right = (
            torch.tensor([float(np.asarray(i)[:, half].mean()) for i in images])
            for half in (slice(8), slice(8, None))
        )
        return torch.stack([left - 1, left, *[right] * (len(texts) - 2)], 1) / 255


def shades(caption: str, seed: int) -> tuple[int, int]:
    draw = zlib.crc32(f"{caption} {seed}".encode())
    return draw % 251, draw // 251 % 250 + 1 + (draw % 251 == draw // 251 % 250 + 1)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for shade in (10, 20, 30):
        Image.new("RGB", (20, 10), (shade,) * 3).save(folder / f"{shade}.png")
    return {f"{shade}.png": folder / f"{shade}.png" for shade in (10, 20, 30)}


def make(out, images, teller=None, painter=None, judge=None, seed=0, keep=2, count=6):
    with open_progress(out / "progress.sqlite") as progress:
        work = Backgrounds(out, ["cat", "dog"], progress, seed)
        groups = work.paint(
            work.describe(images.items(), teller or Teller()), painter or Dauber(), count
        )
        return json.loads(work.finish(groups, judge or Judge(), keep, count).read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".sqlite"
    }


def test_kept_are_the_chosen_of_each_caption(tmp_path, images):
    judge, painter = Judge(), Dauber()
    content = make(tmp_path / "out", images, painter=painter, judge=judge)
    pictures = content["pictures"]
    assert len(pictures) == 3 * 2 * 6
    assert {p["source"] for p in pictures} == set(images)
    assert len({p["seed"] for p in pictures}) == len(pictures)
    for group in (pictures[i : i + 6] for i in range(0, 36, 6)):
        assert len({p["caption"] for p in group}) == 1
        truth = [shades(p["caption"], p["seed"]) for p in group]
        for picture, (left, right) in zip(group, truth, strict=True):
            assert picture["class_similarity"] == pytest.approx(left / 255, abs=0.02)
            assert picture["caption_similarity"] == pytest.approx(right / 255, abs=0.02)
            assert picture["nearest_class"] == "dog"
        apart = sorted(range(6), key=lambda i: group[i]["class_similarity"])[:4]
        best = sorted(apart, key=lambda i: -group[i]["caption_similarity"])[:2]
        assert [i for i in range(6) if group[i]["kept"]] == sorted(best)
    assert judge.texts[0] == ["a photo of a cat", "a photo of a dog", pictures[0]["caption"]]
    kept = {Path(p["file"]).name for p in pictures if p["kept"]}
    assert {p.name for p in (tmp_path / "out/backgrounds").iterdir()} == kept
    for picture in pictures:
        assert (tmp_path / "out" / picture["file"]).is_file()
    assert content["painter"] == painter.settings
    assert content["classes"] == ["cat", "dog"]
    assert content["skipped"] == {}


def test_class_words_are_substituted_before_painting(tmp_path, images):
    painter = Dauber()
    pictures = make(tmp_path / "out", images, painter=painter)["pictures"]
    assert not any("dog" in caption for caption in painter.calls)
    assert {p["original_caption"] for p in pictures} >= {
        "a dog on shade 10",
        "an empty shade 30 room",
    }
    for p in pictures:
        assert re.fullmatch(p["original_caption"].replace("dog", r"\w+"), p["caption"])


def test_repeated_it_does_nothing_anew(tmp_path, images):
    first = make(tmp_path / "out", images)
    before = files(tmp_path / "out")
    teller, painter, judge = Teller(), Dauber(), Judge()
    assert make(tmp_path / "out", images, teller, painter, judge) == first
    assert (teller.calls, painter.calls, judge.calls) == (0, [], 0)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_stopped_and_repeated_gives_the_same(tmp_path, images, stop):
    make(tmp_path / "whole", images)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", images, painter=Dauber(stop_after=stop))
    assert not (tmp_path / "out/generated.json").exists()
    teller, painter = Teller(), Dauber()
    make(tmp_path / "out", images, teller, painter)
    assert len(painter.calls) == 6 - stop
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_seed_or_setting_paints_anew_and_another_choice_does_not(tmp_path, images):
    first = make(tmp_path / "out", images)
    other = make(tmp_path / "out", images, seed=1)
    assert not {p["seed"] for p in first["pictures"]} & {p["seed"] for p in other["pictures"]}
    painter = Dauber(settings={"model": "dauber", "steps": 3})
    make(tmp_path / "out", images, painter=painter)
    assert len(painter.calls) == 6
    painter, judge = Dauber(), Judge()
    (tmp_path / "out/backgrounds/mine.jpg").write_bytes(b"")
    one = make(tmp_path / "out", images, painter=painter, judge=judge, keep=1)
    assert (painter.calls, judge.calls) == ([], 0)
    kept = {Path(p["file"]).name for p in one["pictures"] if p["kept"]}
    assert len(kept) == 6
    assert {p.name for p in (tmp_path / "out/backgrounds").iterdir()} == kept | {"mine.jpg"}


def test_a_deleted_picture_is_painted_again(tmp_path, images):
    first = make(tmp_path / "out", images)
    before = files(tmp_path / "out")
    (tmp_path / "out" / first["pictures"][7]["file"]).unlink()
    painter = Dauber()
    make(tmp_path / "out", images, painter=painter)
    assert painter.calls == [first["pictures"][7]["caption"]]
    assert files(tmp_path / "out") == before


def test_what_gives_nothing_is_counted_told_and_left_out(tmp_path, images):
    images["30.png"].write_bytes(b"no image")
    images["40.png"] = tmp_path / "gone.png"
    with pytest.warns(UserWarning, match="left out") as said:
        content = make(
            tmp_path / "out", images, Teller(("a dog", "  ")), Dauber(blank=(0,), nothing=(1, 3))
        )
    assert len(content["pictures"]) == 2 * 3
    assert content["skipped"] == {
        "images that cannot be read": 2,
        "empty captions": 2,
        "pictures that are missing or of one colour": 6,
    }
    lines = {str(warning.message) for warning in said}
    assert {f"left out: {times} {what}" for what, times in content["skipped"].items()} <= lines
    with pytest.warns(
        UserWarning, match="left out: 2 images that cannot be read"
    ):  # told again when repeated
        assert (
            make(
                tmp_path / "out",
                images,
                Teller(("a dog", "  ")),
                Dauber(blank=(0,), nothing=(1, 3)),
            )
            == content
        )


class Mute(Teller):
    def __call__(self, image, seed):
        return []


class Blind(Judge):
    def __call__(self, images, texts):
        return super().__call__(images, texts) * float("nan")


class Idle(Dauber):
    def __call__(self, caption, seeds):
        return []


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    "parts",
    [
        {"teller": Mute()},
        {"painter": Idle()},
        {"judge": Blind()},
        {"painter": Dauber(blank=range(6))},
    ],
)
def test_nothing_at_all_is_an_error(tmp_path, images, parts):
    with pytest.raises(InputError, match="nothing was generated"):
        make(tmp_path / "out", images, **parts)
    assert not (tmp_path / "out/generated.json").exists()


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("judged", [True, False])
def test_pictures_of_a_folder_are_chosen_by_their_likeness_to_classes(tmp_path, judged):
    paths = []
    for number in range(40):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :8], pixels[:, 8:] = (number * 37) % 200, 255
        paths.append(tmp_path / f"{number % 2}" / f"{number // 2}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(paths[-1])
    paths[3].write_bytes(b"no image")
    with open_progress(tmp_path / "out/progress.sqlite") as progress:
        work = Backgrounds(tmp_path / "out", ["cat", "dog"], progress)
        content = json.loads(
            work.finish([found_in(paths)], Judge() if judged else None, 3, 10).read_text()
        )
    kept = {Path(p["file"]) for p in content["pictures"] if p["kept"]}
    least = sorted(
        (number for number in range(40) if number != 3), key=lambda number: number * 37 % 200
    )[:12]
    assert kept == ({paths[number] for number in least} if judged else set(paths))
    assert len(list((tmp_path / "out/backgrounds").iterdir())) == len(kept)
    assert all("caption_similarity" not in picture for picture in content["pictures"])


def test_a_foreign_progress_file_is_refused(tmp_path, images):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/progress.sqlite").write_text("something else " * 100)
    with pytest.raises(InputError, match=r"progress\.sqlite.*delete it"):
        make(tmp_path / "out", images)
