"""The package from Python: quick to import, everything at hand."""

from __future__ import annotations

import ast
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import toy_plugins
import yaml
from pages import ROOT
from PIL import Image
from safetensors.torch import save_file

import wsis
from wsis import fit, registry
from wsis.errors import InputError
from wsis.inference import predict
from wsis.types import Prediction


def read(module) -> str:
    return Path(module.__file__).read_text()


def python(code: str) -> str:
    here = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_import_is_quick_and_light():
    code = "import time, sys; a = time.process_time(); import wsis; print(time.process_time() - a, 'torch' in sys.modules)"
    best = min((python(code).split() for _ in range(3)), key=lambda said: float(said[0]))
    assert float(best[0]) < 0.3
    assert best[1] == "False"


@pytest.mark.slow
def test_listing_imports_no_method():
    assert (
        python(
            "import wsis, sys; assert 'PDSL' in dir(wsis); print('torch' in sys.modules)"
        ).strip()
        == "False"
    )


@pytest.mark.parametrize(("name", "kind"), registry.exports().items())
def test_every_class_is_at_hand(name, kind):
    assert getattr(wsis, name).__name__ == name
    assert getattr(wsis, name) is registry.find(kind, name)


def test_editors_and_type_checkers_see_what_there_is():
    """The names that `wsis/__init__.py` imports for them; tests/typed_api.py has their types."""
    (block,) = (node for node in ast.parse(read(wsis)).body if isinstance(node, ast.If))
    names = {node.names[0].name for node in block.body}
    assert names == set(dir(wsis)) - {"__version__"}
    assert registry.exports().keys() < names
    assert {"build", "fit", "load", "predict", "Prediction"} <= names


def test_help_is_short_and_names_the_functions():
    text = pydoc.render_doc(wsis, renderer=pydoc.plaintext)
    assert len(text.splitlines()) < 100
    for shown in ("wsis.fit(", "wsis.predict(", "build(model", "load(run", "`wsis.PDSL`"):
        assert shown in text


def test_unknown_name():
    with pytest.raises(AttributeError, match="Pdls"):
        wsis.Pdls  # noqa: B018


def test_version():
    """One version everywhere; before the first release, the changelog has none."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", wsis.__version__)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == wsis.__version__
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:1] in ([], [wsis.__version__])


@pytest.mark.slow
def test_load(tmp_path):
    words = "--model toy_plugins.Net --data toy_plugins.Data --model.width 7 --data.batch_size 3 --trainer.accelerator cpu"
    fit.main([*words.split(), "--trainer.max_steps", "2", "--run_dir", str(tmp_path)])
    model, data, config, _ = wsis.load(tmp_path)
    assert isinstance(model, toy_plugins.Net)
    assert not model.training
    trained = torch.load(tmp_path / "train/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert data.batch_size == 3
    assert isinstance(data.hparams if hasattr(data, "root") else data, toy_plugins.Data)
    assert config["model"]["init_args"]["width"] == 7
    with pytest.raises(InputError, match="not the folder of a run"):
        wsis.load(tmp_path / "train/checkpoints")


@pytest.mark.slow
def test_a_run_from_python_is_loaded_without_its_data_and_weights(tmp_path, caplog, capfd):
    """It is the run of the command line, and what has been trained needs nothing else."""
    file, images = tmp_path / "weights.safetensors", tmp_path / "images"
    save_file(timm.create_model("test_byobnet").state_dict(), file)
    run = wsis.fit(
        "cam",
        "shapes",
        model={"backbone": {"weights": str(file)}},
        data={"root": images, "train": 4, "val": 2},
        trainer={"max_steps": 1, "accelerator": "cpu"},
        run_dir=tmp_path / "run",
    )
    assert run == tmp_path / "run"
    words = f"--model cam --data.root {images} --data.train 4 --data.val 2 --trainer.max_steps 1"
    words += f" --trainer.accelerator cpu --model.backbone.weights {file} --run_dir {run}"
    fit.main(words.split())
    assert "train: done before" in capfd.readouterr().out
    image = Image.open(next(images.rglob("*.jpg"))).convert("RGB")
    shutil.rmtree(images)
    file.unlink()
    caplog.clear()
    capfd.readouterr()
    model, *_ = wsis.load(run)
    assert model.class_names[:2] == ("red-striped egg", "blue-striped egg")
    found = wsis.predict(model, image)
    assert set(found.names) <= set(model.class_names)
    assert found.plot(image, long_side=400).size[0] == 400
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_fit_raises_what_the_command_line_prints(tmp_path):
    with pytest.raises(InputError, match=r"did you mean 'model\.pooling'"):
        wsis.fit("cam", model={"poling": "lse"}, run_dir=tmp_path)
    with pytest.raises(InputError, match="unknown setting 'resume'"):
        wsis.fit("cam", resume=tmp_path)
    assert not list(tmp_path.iterdir())


class Echo(toy_plugins.Net):
    """Says what it was shown."""

    def predict_step(self, batch, i):
        (sample,) = batch
        assert not self.training
        found = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)
        self.shown = sample
        return [Prediction(sample["image_id"], sample["size"], *found, [])]


def test_predict_takes_any_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    model = Echo(3).train()
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        tensor,
    ):
        prediction = wsis.predict(model, image)
        assert prediction.size == (20, 30)
        assert torch.equal(model.shown["image"], tensor)
        assert "proposals" not in model.shown
        assert model.training
    assert prediction.class_names == ()
    assert [p.size for p in wsis.predict(model, [pixels, tensor[:, :5]])] == [(20, 30), (5, 30)]
    with pytest.raises(InputError, match="an image is"):
        predict(model, pixels.astype(float))


@pytest.mark.filterwarnings("error")
def test_an_image_that_cannot_be_written_to_is_copied():
    predict(Echo(3), np.asarray(Image.new("RGB", (30, 20))))


def test_predict_tells_the_names_that_the_model_knows():
    pixels = np.zeros((20, 30, 3), np.uint8)
    model = Echo(3)
    model.class_names = ("bird", "bus", "cat")
    assert predict(model, pixels).class_names == ("bird", "bus", "cat")
    model.needs_boxes = True  # its labels are those of the boxes
    assert predict(model, pixels, boxes=torch.zeros(0, 4)).class_names == ()


def test_predict_makes_proposals_where_needed():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:50] = 200
    model = Echo(3)
    model.needs_proposals = True
    wsis.predict(model, pixels)
    proposals = model.shown["proposals"]
    assert len(proposals.boxes) > 0
    assert any(torch.equal(box, torch.tensor([20.0, 10, 50, 30])) for box in proposals.boxes), (
        "the rectangle is among them"
    )
