"""What users give wrongly, through the verbs: one clear line, exit code 2, nothing lost.

no proposals for an image           test_fit_says_what_is_wrong, test_half_made_proposals_are_completed; a training step
                                    with none: models/test_all.py
no tag                              test_what_is_odd_but_right_is_trained_on_and_predicted
unknown class, missing image          test_fit_says_what_is_wrong
broken or empty image               test_fit_says_what_is_wrong, test_broken_image_is_named_by_a_loader_process,
                                    test_proposals_of_the_other_images_are_kept
grey, CMYK, 16 bits, turned, tiny   test_what_is_odd_but_right_is_trained_on_and_predicted; pixels: data/test_images.py
box of no area                      test_boxes_of_no_area_are_left_out_and_counted
proposals of other images           test_fit_says_what_is_wrong, test_images_of_another_size_get_new_proposals
truncated checkpoint                test_damaged_checkpoint_is_not_used_and_mended; while training: test_run.py
checkpoint with code in it          test_code_in_a_checkpoint_is_not_run; all other foreign files: nn/test_checkpoint.py
damaged run folder                  test_damaged_run_folder
folder that cannot be written       test_folder_that_cannot_be_written; of a run: test_run.py
full disk                           test_full_disk; checkpoints: test_run.py
wrong results file                  test_verbs.py
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from wsis import fit, label, predict, propose
from wsis import test as judging
from wsis.proposals.file import ProposalFile
from wsis.proposals.source import file_name

pytestmark = pytest.mark.slow

QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.max_steps",
    "2",
    "--trainer.log_every_n_steps",
    "1",
    "--save_every",
    "1",
]
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 64)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 60, (*size, 3), dtype=np.uint8)
    cv2.circle(pixels, (30, 24), 12, (40, 200, 240), -1)
    cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tagged images, their proposals, and a run."""
    place = tmp_path_factory.mktemp("made")
    root = place / "images"
    root.mkdir()
    for seed, name in enumerate(NAMES):
        picture(root / name, seed)
    (root / "labels.csv").write_text("a.jpg,cat\nb.jpg,dog\nc.jpg,cat;dog\nd.jpg,cat\n")
    propose.main(["--data", "folder", "--data.root", str(root), "--workers", "0"])
    fit.main([*words(root), "--run_dir", str(place / "run")])
    return place


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "images", tmp_path / "images")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


def words(root: Path, model: str = "toy_proposer.Asking") -> list[str]:
    return [
        "--model",
        model,
        *QUICK,
        "--data",
        "folder",
        "--data.root",
        str(root),
        "--data.loading.workers",
        "0",
    ]


def refused(verb, argv, capfd) -> str:
    """The last line of a verb that ends with 2: the only one that is an error."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        verb.main([str(word) for word in argv])
    said = capfd.readouterr().err
    assert end.value.code == 2, said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    line = said.rstrip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename(root: Path) -> None:
    shutil.move(root / file_name("segments"), root / "own.sqlite")
    (root / "b.jpg").rename(root / "z.jpg")
    (root / "labels.csv").write_text("a.jpg,cat\nz.jpg,dog\n")


def resize(root: Path) -> None:
    shutil.move(root / file_name("segments"), root / "own.sqlite")
    picture(root / "b.jpg", 1, (50, 64))


WRONG: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "unknown classes": (
        lambda root: None,
        "--data.classes [cow,emu]",
        ["labels.csv has none of the classes cow, emu; it has cat, dog"],
    ),
    "unknown validation tag": (
        lambda root: (root / "val.csv").write_text("a.jpg,dgo\n"),
        "",
        ["did you mean 'dog'?"],
    ),
    "missing image": (
        lambda root: (root / "c.jpg").unlink(),
        "",
        ["labels.csv:3: no image", "c.jpg", "remove its label"],
    ),
    "empty image": (
        lambda root: (root / "c.jpg").write_bytes(b""),
        "",
        ["c.jpg is empty (0 bytes)"],
    ),
    "truncated image": (
        lambda root: cut(root / "c.jpg"),
        "",
        ["cannot read image", "c.jpg", "truncated"],
    ),
    "no proposals for an image": (
        rename,
        "--data.proposals {}/own.sqlite",
        ["no proposals for z.jpg", "wsis.propose"],
    ),
    "proposals of other images": (
        resize,
        "--data.proposals {}/own.sqlite",
        ["b.jpg was 64 x 48", "for other images"],
    ),
    "truncated proposals": (
        lambda root: cut(root / file_name("segments")),
        "",
        ["damaged", "wsis.propose"],
    ),
    "no such proposals": (
        lambda root: None,
        "--data.proposals nowhere.pkl",
        ["no proposals nowhere.pkl"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_fit_says_what_is_wrong(case, root, tmp_path, capfd):
    spoil, more, told = WRONG[case]
    spoil(root)
    line = refused(
        fit, [*words(root), "--run_dir", tmp_path / "run", *more.format(root).split()], capfd
    )
    assert all(part in line for part in told), line


def test_broken_image_is_named_by_a_loader_process(root, tmp_path, capfd):
    cut(root / "c.jpg")
    argv = [
        *words(root, "toy_detector.Peeper"),
        "--data.loading.workers",
        "1",
        "--run_dir",
        tmp_path / "run",
    ]
    assert "c.jpg" in refused(fit, argv, capfd)


def test_proposals_of_the_other_images_are_kept(root, capfd):
    whole = (root / "c.jpg").read_bytes()
    (root / file_name("segments")).unlink()
    cut(root / "c.jpg")
    argv = ["--data", "folder", "--data.root", root, "--workers", "1"]
    assert "the other proposals are kept" in refused(propose, argv, capfd)
    assert set(ProposalFile(root / file_name("segments")).files()) == {
        "a.jpg",
        "b.jpg",
        "d.jpg",
    }
    (root / "c.jpg").write_bytes(whole)
    propose.main([str(word) for word in argv])
    assert set(ProposalFile(root / file_name("segments")).files()) == set(NAMES)


def test_images_of_another_size_get_new_proposals(root):
    picture(root / "b.jpg", 1, (50, 64))
    before = ProposalFile(root / file_name("segments")).read("a.jpg", (48, 64), segments=True)
    propose.main(["--data", "folder", "--data.root", str(root), "--workers", "1"])
    file = ProposalFile(root / file_name("segments"))
    assert file.files()["b.jpg"] == (50, 64)
    assert file.read("b.jpg", (50, 64), segments=True).labels.shape == (50, 64)
    assert file.read("a.jpg", (48, 64), segments=True).members.equal(before.members)


def test_what_is_odd_but_right_is_trained_on_and_predicted(root, tmp_path, run, capfd):
    pixels = np.asarray(Image.open(root / "a.jpg"))
    grey = pixels[..., 0].astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[..., 0]).save(root / "grey.jpg")
    Image.fromarray(pixels).convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(grey).save(root / "deep.png")
    Image.fromarray(pixels).save(root / "turned.jpg", exif=turned)
    Image.new("RGB", (1, 1)).save(root / "tiny.png")
    odd = ["grey.jpg", "cmyk.jpg", "deep.png", "turned.jpg", "tiny.png"]
    (root / "labels.csv").write_text("a.jpg,cat;dog\n" + "".join(f"{name},\n" for name in odd))
    fit.main([*words(root), "--run_dir", str(tmp_path / "new"), "--trainer.max_steps", "4"])
    assert "3 images without a label left out, such as b.jpg" in capfd.readouterr().out
    assert set(odd) < set(ProposalFile(root / file_name("segments")).files())
    predict.main(
        [
            str(root),
            "--run",
            str(run),
            "--out",
            str(tmp_path / "out"),
            "--accelerator",
            "cpu",
            "--workers",
            "0",
        ]
    )
    assert "left out" not in capfd.readouterr().err
    sizes = {
        Path(i["file_name"]).name: (i["height"], i["width"])
        for i in json.loads((tmp_path / "out/images.json").read_text())["images"]
    }
    assert sizes["turned.jpg"] == (64, 48)
    assert len(sizes) == 9


def test_boxes_of_no_area_are_left_out_and_counted(root, tmp_path, capfd):
    (root / "labels.csv").unlink()
    boxes = [[1, 2, 30, 20], [1, 2, 0, 20], [1, 2, 30, 20], [5, 5, 9, 0]]
    content = {
        "images": [
            {"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.warns(
        UserWarning,
        match=r"labels\.json: 2 annotations with a box of no area in the image are left out",
    ):
        fit.main([*words(root), "--run_dir", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/train/stage.json").read_text())["finished"]


def test_damaged_checkpoint_is_not_used_and_mended(root, run, tmp_path, capfd):
    checkpoint = run / "train/checkpoints/last.ckpt"
    cut(checkpoint)
    ways = {
        predict: [root / "a.jpg", "--out", tmp_path / "out"],
        label: ["--out", tmp_path / "x.json"],
    }
    for verb, argv in ways.items():
        line = refused(verb, [*argv, "--run", run, "--accelerator", "cpu"], capfd)
        assert "last.ckpt is damaged" in line
        assert f"--resume {run}" in line
    fit.main(["--resume", str(run), "--data.root", str(root)])
    assert "going back to the checkpoint before it" in capfd.readouterr().out
    predict.main(
        [
            str(root / "a.jpg"),
            "--out",
            str(tmp_path / "out"),
            "--run",
            str(run),
            "--accelerator",
            "cpu",
            "--workers",
            "0",
        ]
    )
    checkpoint.unlink()
    (checkpoint.parent / "previous.ckpt").write_bytes(b"")
    assert "damaged and there is no earlier one" in refused(fit, ["--resume", run], capfd)


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def test_code_in_a_checkpoint_is_not_run(root, run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = run / "train/checkpoints/last.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"evil": Evil()}, path)
    for verb, argv in (
        (predict, [root / "a.jpg", "--out", tmp_path / "out", "--run", run]),
        (label, ["--out", tmp_path / "x.json", "--run", run]),
        (fit, ["--resume", run, "--trainer.max_steps", "9"]),
    ):
        line = refused(verb, argv, capfd)
        assert "last.ckpt asks for posix.system, which is not data" in line
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("train/stage.json", '{"fini', "stage.json is damaged; delete"),
        ("config.yaml", "", "config.yaml does not name the model and data"),
        ("config.yaml", "model: [", "config.yaml is not YAML"),
        (
            "config.yaml",
            "model: cam\ndata: [folder]",
            "`data` is a name, or {class_path: NAME, init_args: {SETTING: VALUE}}",
        ),
        (
            "config.yaml",
            "model: toy_proposer.Asking\ndata: {class_path: folder, init_args: {rot: x}}",
            "rot",
        ),
    ],
)
def test_damaged_run_folder(name, text, told, root, run, tmp_path, capfd):
    (run / name).write_text(text)
    for verb, argv in (
        (predict, [root / "a.jpg", "--out", tmp_path / "out", "--run"]),
        (label, ["--out", tmp_path / "x", "--run"]),
        (fit, ["--resume"]),
        *(
            [(judging, ["--run"])] if name == "config.yaml" else []
        ),  # before the stage it looks for truth to judge by
    ):
        assert told in refused(verb, [*argv, run], capfd)


def test_folder_that_cannot_be_written(root, run, tmp_path, capfd):
    (tmp_path / "file").touch()
    no = tmp_path / "file/x"
    there = ["--run", run, "--accelerator", "cpu"]
    assert "cannot write" in refused(predict, [root, "--out", no, "--workers", "0", *there], capfd)
    assert "cannot write" in refused(label, ["--out", no / "l.json", *there], capfd)
    assert "cannot write" in refused(
        propose, ["--data", "folder", "--data.root", root, "--out", no / "p.sqlite"], capfd
    )


@contextmanager
def room(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(root, run, tmp_path, capsys):
    there = ["--run", run, "--accelerator", "cpu"]
    with room(100):
        predicted = refused(
            predict, [root, "--out", tmp_path / "out", "--workers", "0", *there], capsys
        )
        labelled = refused(label, ["--out", tmp_path / "l.json", *there], capsys)
    for line in (predicted, labelled):
        assert "cannot write" in line
        assert "free space" in line
    assert not list(tmp_path.rglob("out/*"))
    assert not (tmp_path / "l.json").exists()


def test_full_disk_while_proposing(root, capsys):
    argv = ["--data", "folder", "--data.root", root, "--workers", "1"]
    (root / file_name("segments")).unlink()
    with room(5000):
        line = refused(propose, argv, capsys)
    assert "cannot write" in line
    assert "free space" in line
    propose.main([str(word) for word in argv])
    assert set(ProposalFile(root / file_name("segments")).files()) == set(NAMES)


def test_half_made_proposals_are_completed(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    shutil.move(root / "labels.csv", tmp_path / "all.csv")
    (root / file_name("segments")).unlink()
    (root / "labels.csv").write_text("a.jpg,cat\n")
    fit.main([*words(root), "--run_dir", str(tmp_path / "one")])
    (made,) = (tmp_path / "cache").rglob(file_name("segments"))
    assert set(ProposalFile(made).files()) == {"a.jpg"}
    shutil.move(tmp_path / "all.csv", root / "labels.csv")
    fit.main([*words(root), "--run_dir", str(tmp_path / "all")])
    assert set(ProposalFile(made).files()) == set(NAMES)
