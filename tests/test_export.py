"""An exported file finds what the run finds, in a program that has no part of this library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from pages import ROOT, blocks
from PIL import Image
from toy_networks import SCORE, SIZES, check_maps, check_objects, image, network
from toy_shared import METRICS, make_run

import wsis
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.export import export, main
from wsis.graphs import write

CLASSES = len(Shapes().class_names)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(place) -> Path:
    return make_run(place / "run", network("mask_rcnn", CLASSES))


@pytest.fixture(scope="module")
def file(run, place) -> Path:
    pytest.importorskip("onnxscript")
    return main([str(run), str(place / "model.onnx"), "--score", str(SCORE["mask_rcnn"])])


def session_of(file: Path):
    return pytest.importorskip("onnxruntime").InferenceSession(str(file))


@pytest.mark.slow
def test_onnx_is_the_run(file, run):
    session, model = session_of(file), wsis.load(run).model
    counts = [
        check_objects(session.run(None, {"image": image(size).numpy()}), model, image(size), 0.3)
        for size in SIZES
    ]
    assert min(counts) > 2
    assert session.get_inputs()[0].shape == [3, "height", "width"]
    assert [value.name for value in session.get_outputs()] == ["boxes", "scores", "labels", "masks"]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["names"]) == list(Shapes().class_names)
    assert float(facts["threshold"]) == METRICS["val/F1_threshold"]
    assert float(facts["score"]) == SCORE["mask_rcnn"]
    assert facts["wsis"] == wsis.__version__
    assert facts["method"] == "MaskRCNN"


@pytest.mark.slow
def test_it_has_operators_of_onnx_alone_and_nothing_of_this_machine(file):
    model = pytest.importorskip("onnx").load(file)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {"NonMaxSuppression", "RoiAlign"} <= {node.op_type for node in model.graph.node}
    for word in (str(ROOT), str(Path(torch.__file__).parent), str(file.parent), "forward"):
        assert word.encode() not in file.read_bytes()


@pytest.mark.slow
def test_the_snippet_of_the_documentation(file, tmp_path, monkeypatch, capsys):
    (block,) = [b for b in blocks(ROOT / "docs/sharing.md", "python") if "onnxruntime" in b]
    assert len(block.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    Image.fromarray(image((90, 140)).permute(1, 2, 0).numpy()).save("image.png")
    known: dict = {}
    exec(block.replace("horses.onnx", str(file)).replace("image.jpg", "image.png"), known)
    assert len(capsys.readouterr().out.splitlines()) == len(known["scores"]) > 0
    assert known["masks"].shape[1:] == (90, 140)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_transformer", "cam"])
def test_onnx_of_other_networks(name, place):
    pytest.importorskip("onnxscript")
    model = network(name, CLASSES)
    run = make_run(place / name, model)
    session = session_of(export(str(run), place / f"{name}.onnx", score=SCORE[name]))
    for size in SIZES:
        found = session.run(None, {"image": image(size).numpy()})
        if name == "cam":
            check_maps(found, model, image(size))
        else:
            assert check_objects(found, model, image(size), SCORE[name]) > 2


@pytest.mark.slow
def test_without_objects(place):
    pytest.importorskip("onnxscript")
    model = network("mask_rcnn", CLASSES)
    run = make_run(place / "none", model)
    session = session_of(export(str(run), place / "none.onnx", score=1.0))
    found = session.run(None, {"image": image(SIZES[0]).numpy()})
    assert [part.shape for part in found] == [(0, 4), (0,), (0,), (0, *SIZES[0])]


@pytest.mark.slow
def test_a_program_of_torch(run, place):
    file = export(str(run), place / "model.pt2", score=0.3)
    facts = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=facts).module()
    assert json.loads(json.loads(facts["metadata.json"])["names"]) == list(Shapes().class_names)
    with torch.no_grad():
        found = program(image(SIZES[1]))
    assert check_objects(found, wsis.load(run).model, image(SIZES[1]), 0.3) > 5


def refused(argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in argv])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_cannot_be_written_is_one_line(run, tmp_path, capsys, monkeypatch):
    assert "ends in .onnx or .pt2" in refused([run, tmp_path / "model.pb"], capsys)
    words = [run, tmp_path / "model.pt2", "--score", "2"]
    assert "export: score 2.0" in refused(words, capsys)
    assert "cannot write" in refused([run, run / "config.yaml/model.pt2"], capsys)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused([run, tmp_path / "model.onnx"], capsys)
    assert "needs the package onnx" in line
    assert "pip install 'wsis[export]'" in line
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_followed_is_one_line(run, tmp_path, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent\nexpression")

    monkeypatch.setattr(torch.export, "export", fail)
    (tmp_path / "model.pt2").write_text("mine")
    line = refused([run, tmp_path / "model.pt2"], capsys)
    assert "MaskRCNN with its backbone cannot be exported: data-dependent expression" in line
    assert (tmp_path / "model.pt2").read_text() == "mine"


def test_too_large_for_a_file_of_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_MOST_BYTES", 10)
    with pytest.raises(InputError, match=r"give a file that ends in \.pt2"):
        write.write_onnx(torch.nn.Linear(2, 2), {}, tmp_path / "model.onnx")
