from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sqlite3

import cv2
import numpy as np
import pytest
import torch

from wsis.errors import InputError
from wsis.proposals import make as making
from wsis.proposals.file import ProposalFile, write
from wsis.proposals.make import make
from wsis.types import Index, Proposals

MADE = {"made": "by hand", "supervision": "none"}


def drawn(seed=0, size=(30, 40), count=13, superpixels=9, boxes_alone=False):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2)) * size[::-1], 1).reshape(count, 4)
    scores = np.sort(rng.random(count))[::-1].copy()
    columns = [
        torch.tensor(corners, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
    ]
    if not boxes_alone:
        labels = rng.integers(-1, superpixels, size).astype(np.int32)
        columns += [
            torch.from_numpy(labels),
            torch.from_numpy(rng.random((count, superpixels)) < 0.4),
        ]
    return Proposals(*columns)


def same(first, second):
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and a.equal(b))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("superpixels", [1, 9, 40000])
@pytest.mark.parametrize("count", [0, 1, 13])
def test_what_was_written_is_read_to_the_bit(tmp_path, count, superpixels):
    given = drawn(count=count, superpixels=superpixels)
    with write(tmp_path / "p.sqlite", MADE) as writer:
        writer.add("a/b.jpg", (30, 40), given)
    file = ProposalFile(tmp_path / "p.sqlite")
    assert same(file.read("a/b.jpg", (30, 40), segments=True), given)
    assert same(file.read("a/b.jpg", (30, 40)), (*given[:2], None, None))
    assert same(
        file.read("a/b.jpg", (30, 40), True, 5),
        Proposals(given[0][:5], given[1][:5], given[2], given[3][:5]),
    )
    assert file.provenance == MADE
    assert len(file) == 1
    assert list(file.files()) == ["a/b.jpg"]


def test_a_pickled_reader_reads_in_another_process(tmp_path):
    with write(tmp_path / "p.sqlite", MADE) as writer:
        writer.add("a.jpg", (30, 40), drawn())
    file = ProposalFile(tmp_path / "p.sqlite")
    assert same(pickle.loads(pickle.dumps(file)).read("a.jpg", (30, 40), True), drawn())
    with multiprocessing.get_context("fork").Pool(
        1
    ) as pool:  # as a loader worker, after the file was opened here
        assert pool.apply(_count, (file,)) == 13


def _count(file):
    return len(file.read("a.jpg", (30, 40)).boxes)


def test_missing_image_other_size_and_boxes_alone_are_told(tmp_path):
    with write(tmp_path / "p.sqlite", MADE) as writer:
        writer.add("a.jpg", (30, 40), drawn(boxes_alone=True))
    file = ProposalFile(tmp_path / "p.sqlite")
    with pytest.raises(InputError, match=r"no proposals for b\.jpg.*wsis\.propose"):
        file.read("b.jpg", (30, 40))
    with pytest.raises(InputError, match=r"40 x 30 pixels, is 30 x 40.*made for other images"):
        file.read("a.jpg", (40, 30))
    with pytest.raises(InputError, match="boxes alone"):
        file.read("a.jpg", (30, 40), segments=True)


def test_foreign_truncated_and_damaged_files_are_told(tmp_path):
    path = tmp_path / "p.sqlite"
    with pytest.raises(InputError, match="no proposal file"):
        ProposalFile(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="not a proposal file"):
        ProposalFile(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(InputError, match="not a proposal file"):
        ProposalFile(path)
    path.unlink()
    with write(path, MADE) as writer:
        for i in range(50):
            writer.add(f"{i}.jpg", (30, 40), drawn(i))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"damaged|not a proposal file"):
        [ProposalFile(path).read(f"{i}.jpg", (30, 40), True) for i in range(50)]
    path.write_bytes(content)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE proposals SET blob = substr(blob, 1, 60) WHERE file = '7.jpg'")
        blob = connection.execute("SELECT blob FROM proposals WHERE file = '8.jpg'").fetchone()[0]
        first = 13 + int.from_bytes(blob[9:13], "little")  # where the second column begins
        connection.execute("UPDATE proposals SET blob = ? WHERE file = '8.jpg'", (blob[:first],))
    connection.close()
    for name in ("7.jpg", "8.jpg"):
        with pytest.raises(InputError, match=rf"{name} is damaged"):
            ProposalFile(path).read(name, (30, 40), True)


def test_an_error_keeps_what_was_added_and_writing_goes_on(tmp_path):
    path = tmp_path / "p.sqlite"
    with pytest.raises(AttributeError), write(path, MADE) as writer:
        [
            writer.add(name, (30, 40), proposals)
            for name, proposals in (("a.jpg", drawn()), ("b.jpg", None))
        ]
    with write(path, MADE) as writer:
        assert set(writer.files) == {"a.jpg"}
        writer.add("b.jpg", (30, 40), drawn(1))
    assert set(ProposalFile(path).files()) == {"a.jpg", "b.jpg"}
    with (
        pytest.raises(InputError, match="made in another way"),
        write(path, {**MADE, "supervision": "masks"}),
    ):
        pass


def _die(path):
    with write(path, MADE) as writer:
        for i in range(30):
            writer.add(f"{i}.jpg", (30, 40), Proposals(torch.rand(20_000, 4), torch.rand(20_000)))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_writer_killed_in_the_middle_loses_only_its_last_images(tmp_path):
    """4 MB are not committed: more than SQLite's cache, so half of them are in the file."""
    process = multiprocessing.get_context("fork").Process(
        target=_die, args=(tmp_path / "p.sqlite",)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert set(ProposalFile(tmp_path / "p.sqlite").files()) == {f"{i}.jpg" for i in range(16)}
    with write(tmp_path / "p.sqlite", MADE) as writer:
        assert len(writer.files) == 16


def pictures(folder, count=6, size=(48, 64)):
    images = []
    for i in range(count):
        pixels = np.full((*size, 3), 60, np.uint8)
        cv2.circle(pixels, (20 + 4 * i, 24), 12, (30, 200, 240), -1)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
    return Index(name="pictures", root=folder, images=images, categories=[])


@pytest.mark.parametrize("workers", [0, 2])
def test_make_proposes_for_every_image_once(tmp_path, monkeypatch, workers):
    index = pictures(tmp_path)
    out = make(index, tmp_path / "p.sqlite", workers)
    file = ProposalFile(out)
    assert file.files() == {f"{i}.png": (48, 64) for i in range(6)}
    assert file.provenance["supervision"] == "none"
    assert file.read("3.png", (48, 64), True).boxes[0].tolist() == pytest.approx(
        [20, 12, 45, 37], abs=2
    )
    monkeypatch.setattr(making, "_work", lambda job: pytest.fail("done already"))
    make(index, out, 0)


@pytest.mark.parametrize(("workers", "processes"), [(None, 5), (3, 3), (9, 6), (0, None)])
def test_processes_are_those_asked_for_or_one_per_core(tmp_path, monkeypatch, workers, processes):
    """At most one an image; with none the work is done here."""
    begun = []
    monkeypatch.setattr(making, "cores", lambda: 5)
    monkeypatch.setattr(making, "_work", lambda job: "a failure")
    monkeypatch.setattr(
        making,
        "_parallel",
        lambda jobs, count: begun.append(count) or map(making._work, jobs),
    )
    with pytest.raises(InputError, match="a failure"):
        make(pictures(tmp_path), tmp_path / "p.sqlite", workers)
    assert begun == ([] if processes is None else [processes])


def test_a_folder_is_proposed_for_with_its_labels_or_without(tmp_path):
    from wsis.datasets.folder import Folder
    from wsis.propose import main

    pictures(tmp_path, 2)
    (tmp_path / "0.png").rename(tmp_path / "labels.csv")  # a picture that comes later
    (path,) = main(["--images", str(tmp_path), "--workers", "0"])
    assert set(ProposalFile(path).files()) == {"1.png"}
    (tmp_path / "labels.csv").rename(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text("0.png,cat\n1.png,cat\n")
    assert Folder(tmp_path).proposal_file("train").path == path
    assert set(ProposalFile(path).files()) == {"0.png", "1.png"}


def test_a_broken_image_ends_no_work_on_the_others(tmp_path, capsys):
    from wsis.propose import main

    pictures(tmp_path, 2)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as end:
        main(["--images", str(tmp_path), "--out", str(tmp_path / "p.sqlite"), "--workers", "0"])
    assert end.value.code == 2
    assert "error: 1 of 3 images failed: 2.png; " in capsys.readouterr().err.splitlines()[-1]
    assert set(ProposalFile(tmp_path / "p.sqlite").files()) == {"0.png", "1.png"}


def test_a_digest_is_of_the_proposals_alone(tmp_path):
    def digest(name, provenance, **proposals):
        with write(tmp_path / name, provenance) as writer:
            for image, found in proposals.items():
                writer.add(image, (30, 40), found)
        return ProposalFile(tmp_path / name).digest()

    first = digest("a", MADE, x=drawn(0), y=drawn(1))
    assert first == digest("b", {**MADE, "made": "elsewhere"}, y=drawn(1), x=drawn(0))
    assert first != digest("c", MADE, x=drawn(0), y=drawn(2))
    assert first != digest("d", MADE, x=drawn(0), z=drawn(1))


def test_a_digest_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    path, reads = tmp_path / "p.sqlite", []
    read_whole = ProposalFile._digest
    monkeypatch.setattr(
        ProposalFile, "_digest", lambda file: reads.append(file.path) or read_whole(file)
    )

    def store(seed, age):
        with write(path, MADE) as writer:
            writer.add("a.jpg", (30, 40), drawn(seed))
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))

    store(0, age=100)
    first = ProposalFile(path).digest()
    assert ProposalFile(path).digest() == first
    assert len(reads) == 1, "the second time it is known"
    store(0, age=50)
    assert ProposalFile(path).digest() == first
    assert len(reads) == 2, "touched"
    store(1, age=20)
    assert ProposalFile(path).digest() != first
    assert len(reads) == 3, "changed"
    for torn in (tmp_path / "cache").rglob("*.json"):
        torn.write_text("[1")
    assert ProposalFile(path).digest() != first
    assert len(reads) == 4, "what is kept is damaged"
    store(2, age=0)
    second = ProposalFile(path).digest()
    assert ProposalFile(path).digest() == second
    assert len(reads) == 6, "so new that it may change within the clock's resolution"


def test_a_digest_needs_no_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    with write(tmp_path / "p.sqlite", MADE) as writer:
        writer.add("a.jpg", (30, 40), drawn())
    os.utime(tmp_path / "p.sqlite", (1e9, 1e9))
    assert (
        ProposalFile(tmp_path / "p.sqlite").digest() == ProposalFile(tmp_path / "p.sqlite").digest()
    )


def test_make_goes_on_after_an_image_that_cannot_be_read(tmp_path):
    index = pictures(tmp_path)
    good = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(good[:50])
    with pytest.raises(InputError, match=r"2\.png.*the other proposals are kept"):
        make(index, tmp_path / "p.sqlite", 0)
    assert len(ProposalFile(tmp_path / "p.sqlite")) == 5
    (tmp_path / "2.png").write_bytes(good)
    make(index, tmp_path / "p.sqlite", 0)
    assert len(ProposalFile(tmp_path / "p.sqlite")) == 6


def test_the_verb_serves_a_folder_and_says_where(tmp_path, capsys, monkeypatch):
    from wsis.propose import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    pictures(tmp_path / "images", 2)
    paths = main(
        [
            "--images",
            str(tmp_path / "images"),
            "--out",
            str(tmp_path / "o.sqlite"),
            "--workers",
            "1",
        ]
    )
    assert paths == [tmp_path / "o.sqlite"]
    assert f"proposals of 2 images in {tmp_path / 'o.sqlite'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--images", str(tmp_path), "--split", "tset", "--images", str(tmp_path / "none")])
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_verb_makes_the_file_that_the_data_set_looks_for(tmp_path, monkeypatch):
    from wsis.datasets.shapes import Shapes
    from wsis.propose import main

    small, asked, results = (
        ["--data.train", "2", "--data.val", "1", "--data.salient", "1"],
        [],
        making._results,
    )
    monkeypatch.setattr(
        making, "_results", lambda *given: asked.append(given[1]) or results(*given)
    )
    paths = main(["--data", "shapes", "--data.root", str(tmp_path), *small, "--workers", "1"])
    assert asked == [1, 1]
    monkeypatch.setattr(making, "_work", lambda job: pytest.fail("done already"))
    data = Shapes(root=tmp_path, train=2, val=1, salient=1)
    assert [data.proposal_file(split).path for split in ("train", "val")] == paths


def test_a_new_file_without_proposals_is_not_left_behind(tmp_path):
    def failing(path, *files):
        with write(path, MADE) as writer:
            for file in files:
                writer.add(file, (30, 40), drawn())
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        failing(tmp_path / "none.sqlite")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="stopped"):
        failing(tmp_path / "one.sqlite", "a.jpg")
    with pytest.raises(ValueError, match="stopped"):
        failing(tmp_path / "one.sqlite")
    assert [*ProposalFile(tmp_path / "one.sqlite").files()] == ["a.jpg"]


@pytest.mark.parametrize("content", [b"x", b"my notes", b"x" * 5000])
def test_a_foreign_file_is_not_written_over(tmp_path, content):
    (tmp_path / "notes").write_bytes(content)
    with (
        pytest.raises(InputError, match="notes is not a proposal file"),
        write(tmp_path / "notes", MADE),
    ):
        pass
    assert (tmp_path / "notes").read_bytes() == content
