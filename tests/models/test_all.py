"""What every method must do, found by discovery: a new file in wsis/models is tested from its first day."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from poison import poison
from pytorch_lightning.utilities import rank_zero_only

import wsis
from wsis import fit, registry
from wsis.data.module import DataModule
from wsis.data.targets import FIELDS
from wsis.data.transforms import Augment
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.inference import trained as trained_stages
from wsis.method import Method
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.runs.record import stages
from wsis.share import share
from wsis.types import Prediction, Proposals

pytestmark = pytest.mark.timeout(900)  # a method may have ten stages

METHODS = registry.names("model")
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["wsis.fit", *(registry.find("model", name).__module__ for name in METHODS)]
)  # imports take long
MASK_RCNN = {
    "steps": 2,
    "backbone": {"weights": "none", "frozen_stages": 0},
    "features": 16,
    "hidden": 16,
    "mask_width": 8,
    "test_side": 0,
}
GROUPS = {  # of settings that several methods have
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 2,
        "frozen_stages": 0,
    },
    "widths": {"hidden": 32, "features": 32, "mask": 8},
    "inference": {"short_sides": []},
}
TINY = {
    **GROUPS,
    "hidden": 32,
    "features": 32,
    "mask_width": 8,
    "test_side": 0,
    "crop": 64,
    "proxy_crop": 64,
    "num_stuff": 3,
    "evidence": "fast",
    "network": {"features": 16, "hidden": 16, "mask_width": 8, "test_side": 0},
    "pretraining": None,
    "segmentor": MASK_RCNN,
}
STAGED = {  # methods that are trained in stages alone
    "ccgr": {
        "rounds": 2,
        "scales": [1.0],
        "walk_steps": 2,
        "refinement": 5,
        "pretraining": {"steps": 2, "backbone": {"feature_level": 2, "frozen_stages": 0}},
        "affinity": {"steps": 2, "width": 8},
        "detector": {
            "steps": 2,
            "backbone": {"output_stride": 32, "feature_level": 2, "frozen_stages": 5},
            "hidden": 16,
            "features": 16,
        },
        "segmentation": {
            "steps": 2,
            "architecture": "Unet",
            "architecture_args": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        },
        "segmentor": MASK_RCNN,
    },
    "em_paste": {
        "patch_size": 32,
        "min_probability": 0.0,
        "min_area": 0,
        "objects": [1, 3],
        "backgrounds": "black",
        "pretraining": {"steps": 2, "backbone": {"feature_level": 2, "frozen_stages": 0}},
        "segmentor": MASK_RCNN,
    },
}


def hidden(name: str) -> frozenset[str]:
    """Fields of a label that a method may not see."""
    return frozenset(FIELDS) - registry.find("model", name).supervision


TRAINED = [
    name
    for name in METHODS
    if registry.find("model", name).training_step is not Method.training_step
]
PROPOSALS = 100
"""Of an image. Most of a step on a small network goes into pooling them."""
SMALL = Augment(short_sides=(96,))
"""Steps on small images take less time, and nothing tested here depends on their size."""
SMALL_FLAGS = [
    "--data.augment.short_sides=[96]",
    "--data.augment.scales=[]",
    "--data.loading.batch_size=2",
]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def shapes(root: Path) -> Shapes:
    return Shapes(root, train=8, val=2, salient=4, max_proposals=PROPOSALS, augment=SMALL)


@pytest.fixture
def data(root) -> Shapes:
    return shapes(root)


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, root) -> tuple[str, pl.LightningModule]:
    """Each method, trained for two steps."""
    return request.param, train(request.param, shapes(root))


@pytest.fixture(scope="module", params=METHODS)
def whole(request, root, tmp_path_factory) -> tuple[str, Path]:
    """An undisturbed run of each method."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    done = fit.main(words(request.param, root, folder))
    # which stages mixed labels call for, the data decide
    assert done.names == list(done.planned) or request.param == "mixed", (
        "stages are counted wrongly"
    )
    return request.param, folder


class Skipped:
    """A run whose stages are over before they begin; their networks are what they were."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, []

    def fit(self, name, model, data, **_) -> Path:
        self.names.append(name)
        torch.save({"state_dict": model.state_dict()}, self.folder / name)
        return self.folder / name


@pytest.mark.parametrize("name", ["cam", "jtsm", "mask_rcnn", "pdsl"])
@pytest.mark.parametrize("pretraining", [None, {"steps": 1, "backbone": {"feature_level": 2}}])
def test_stages_are_known_before(name, pretraining, data, tmp_path):
    model, run = build(name, pretraining=pretraining), Skipped(tmp_path)
    model.stages(run, data)
    assert model.stage_names() == run.names


def build(name: str, **settings) -> Method:
    cls = registry.find("model", name)
    accepted = inspect.signature(cls).parameters
    return cls(
        num_classes=8,
        **{key: value for key, value in {**TINY, **settings}.items() if key in accepted},
    )


def train(name: str, data: DataModule, salient: Path | None = None, **trainer) -> Method:
    pl.seed_everything(0, verbose=False)
    model = build(name, salient=str(salient or ""))
    settings = {"default_root_dir": data.folder, "max_steps": 2, **QUIET, **trainer}
    pl.Trainer(accelerator="cpu", **settings).fit(model, model.training_data(data))
    return model


def predictions(model: Method, data: Shapes, accelerator: str = "cpu") -> list[Prediction]:
    trainer = pl.Trainer(accelerator=accelerator, default_root_dir=data.folder, **QUIET)
    batches = trainer.predict(model, datamodule=data)
    return [prediction for batch in batches or [] for prediction in batch or []]


def same(a: list[Prediction], b: list[Prediction]) -> bool:
    return len(a) == len(b) > 0 and all(
        torch.equal(p.scores, q.scores) and torch.equal(p.boxes, q.boxes) and p.masks == q.masks
        for p, q in zip(a, b, strict=True)
    )


def predicts(name: str) -> bool:
    return registry.find("model", name).predict is not Method.predict


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_sentence(name):
    cls = registry.find("model", name)
    for setting in inspect.signature(cls).parameters:
        assert f"    {setting}: " in (cls.__doc__ or ""), f"{name}.{setting} has no help"
    assert {"tags"} <= cls.supervision <= {*FIELDS}


@pytest.mark.slow
def test_two_steps_move_what_is_not_frozen_and_nothing_else(trained):
    name, model = trained
    pl.seed_everything(0, verbose=False)
    before, after = dict(build(name).named_parameters()), dict(model.named_parameters())
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved
    assert moved <= {key for key, value in after.items() if value.requires_grad}
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_mixed_precision_trains(name, data):
    model = train(name, data, precision="bf16-mixed")
    assert all(value.isfinite().all() for value in model.parameters())
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.slow
@ON_GPU
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_all_stages_run_on_a_gpu(name, precision, root, tmp_path):
    wanted = [word for word in words(name, root, tmp_path / "run") if "accelerator" not in word]
    done = fit.main([*wanted, "--trainer.accelerator=gpu", f"--trainer.precision={precision}"])
    assert done.names == list(done.planned)
    assert all(record.finished for _, record in stages(tmp_path / "run"))


@pytest.mark.slow
@ON_GPU
def test_a_gpu_predicts_what_the_cpu_does(trained, data):
    name, model = trained
    if not predicts(name):
        return
    on_cpu, on_gpu = (predictions(model, data, accelerator) for accelerator in ("cpu", "gpu"))
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(found.scores[:3], expected.scores[:3], atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_saved_and_loaded_from_python(trained, data, tmp_path):
    name, model = trained
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, default_root_dir=tmp_path, **QUIET)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    if predicts(name):
        assert same(predictions(model, data), predictions(again, data))


def train_on_files(name: str, data: Shapes, folder: Path, salient: Path | None = None) -> Method:
    """Train as on `data`, but on files that can be changed."""
    settings = {"augment": data.augment, "loading": data.loading, "max_proposals": PROPOSALS}
    files = COCO(folder, panoptic=True, **settings)
    return train(name, files, salient or data.salient_folder(), limit_val_batches=0)


def equal(a: pl.LightningModule, b: pl.LightningModule) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TRAINED if hidden(n)])
def test_poison_where_it_may_not_look_changes_no_bit(name, data, tmp_path):
    folder = data.index("train").root.parent
    honest = train_on_files(name, data, folder)
    shutil.copytree(folder, tmp_path / "poisoned")
    poison(tmp_path / "poisoned", hidden(name))
    assert equal(train_on_files(name, data, tmp_path / "poisoned"), honest)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGED)
def test_poison_changes_no_bit_of_any_stage(name, data, tmp_path):
    folder = data.index("train").root.parent
    shutil.copytree(folder, tmp_path / "poisoned")
    poison(tmp_path / "poisoned", hidden(name))
    recipe = Path(__file__).parents[2] / f"configs/shapes/{name}.yaml"
    for run, root in (("honest", folder), ("fooled", tmp_path / "poisoned")):
        flags = [
            word
            for word in words(name, root, tmp_path / run)
            if not word.startswith(("--data.train", "--data.val", "--data.sal"))
        ]
        fit.main(["--data", "coco", "--config", str(recipe), *flags])
    checkpoints = sorted(
        path.relative_to(tmp_path / "honest")
        for path in (tmp_path / "honest").glob("*/checkpoints/last.ckpt")
    )
    assert len(checkpoints) > 1
    for path in checkpoints:
        a, b = (
            torch.load(tmp_path / run / path, weights_only=True)["state_dict"]
            for run in ("honest", "fooled")
        )
        assert all(torch.equal(a[key], b[key]) for key in a), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in METHODS if "salient" in inspect.signature(registry.find("model", n)).parameters],
)
def test_salient_masks_are_learned_from(name, data, tmp_path):
    folder, salient = data.index("train").root.parent, tmp_path / "salient"
    honest = train_on_files(name, data, folder)
    shutil.copytree(data.salient_folder(), salient)
    assert equal(train_on_files(name, data, folder, salient), honest)
    for path in (salient / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).T).save(path)
    assert not equal(train_on_files(name, data, folder, salient), honest)


def test_methods_in_stages_have_their_small_settings():
    assert {*METHODS} == {*TRAINED, *STAGED}


def word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def words(name: str, root: Path, run: Path, steps: int = 4) -> list[str]:
    settings = TINY | STAGED.get(name, {})
    del settings["num_stuff"]  # the data's to say
    accepted = inspect.signature(registry.find("model", name)).parameters
    flags = []
    for key, value in settings.items():
        if key in GROUPS and key in accepted:
            flags += [f"--model.{key}.{part}={word(given)}" for part, given in value.items()]
        elif key in accepted:
            flags += [f"--model.{key}={word(value)}"]
    flags += [
        f"--data.root={root}",
        "--data.train=8",
        "--data.val=2",
        "--data.salient=4",
        f"--data.max_proposals={PROPOSALS}",
        f"--run_dir={run}",
        *SMALL_FLAGS,
    ]
    return [
        "--model",
        name,
        *flags,
        f"--trainer.max_steps={steps}",
        "--trainer.accelerator=cpu",
        "--save_every=1",
    ]


@pytest.fixture(scope="module")
def one_class(root) -> Path:
    """Images of shapes as photos with and without "weed", half of them each."""
    data = shapes(root)
    for split, file in (("train", "labels.json"), ("val", "val.json")):
        index = data.index(split)
        images = [
            {**image, "file_name": str((index.root / image["file_name"]).relative_to(root))}
            for image in index.images
        ]
        annotations = [
            {**annotation, "category_id": 1, "image_id": image["id"]}
            for image in images[::2]
            for annotation in index.annotations[image["id"]]
        ]
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": 1, "name": "weed"}]
        (root / file).write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_one_class_is_enough(name, one_class, tmp_path):
    """Weed or no weed: the commonest photos that people have."""
    run = tmp_path / "run"
    flags = [word for word in words(name, one_class, run, 2) if word != "--save_every=1"]
    of_shapes = ("--data.train", "--data.val", "--data.salient")
    flags = [flag for flag in flags if not flag.startswith(of_shapes)]
    accepted = inspect.signature(registry.find("model", name)).parameters
    if "salient" in accepted:
        flags += [f"--model.salient={shapes(one_class).salient_folder()}"]
    if "stuff" in accepted:
        flags += ["--model.stuff=false"]
    fit.main([*flags, "--data=folder"])
    last = list(run.glob("*/stage.json"))
    assert last
    assert all(json.loads(path.read_text())["finished"] for path in last)


class PowerCut(Exception):
    pass


@pytest.mark.slow
def test_interrupted_run_ends_as_an_undisturbed_one(whole, root, tmp_path, monkeypatch):
    name, undisturbed = whole
    cls = registry.find("model", name)
    cls, last_step = (cls, 2) if name in TRAINED else (MaskRCNN, 1)
    with monkeypatch.context() as patch:
        step = cls.training_step

        def cut(self, batch, index):
            if self.global_step == last_step:
                raise PowerCut
            return step(self, batch, index)

        patch.setattr(cls, "training_step", cut)
        with pytest.raises(PowerCut):
            fit.main(words(name, root, tmp_path / "cut"))
    fit.main(words(name, root, tmp_path / "cut"))
    last = "checkpoints/last.ckpt"
    stages = sorted(path.parents[1].name for path in undisturbed.glob(f"*/{last}"))
    assert stages
    for stage in stages:
        a, b = (
            torch.load(run / stage / last, weights_only=True)["state_dict"]
            for run in (undisturbed, tmp_path / "cut")
        )
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_saved_settings_give_the_same_run_and_it_loads(whole, data, tmp_path):
    name, run = whole
    fit.main(["--config", str(run / "config.yaml"), "--run_dir", str(tmp_path / "again")])
    a, b = (wsis.load(folder).model for folder in (run, tmp_path / "again"))
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    if predicts(name):
        assert same(predictions(a, data), predictions(b, data))


@pytest.mark.slow
def test_every_stage_predicts_the_same_once_shared(whole, tmp_path):
    _, run = whole
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    stages = list(trained_stages(run))
    for stage in stages:
        share(run, str(tmp_path / stage), stage, picture=False)
        one, two = wsis.load(run, stage), wsis.load(tmp_path / stage)
        assert equal(one.model, two.model)
        assert one.threshold == two.threshold
        assert one.model.class_names == two.model.class_names
        if one.model.predicts():
            boxes = torch.tensor([[8.0, 8, 70, 60]]) if one.model.needs_boxes else None
            a, b = (wsis.predict(loaded.model, pixels, boxes) for loaded in (one, two))
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.boxes, b.boxes)
            assert a.masks == b.masks
            assert not one.model.panoptic or torch.equal(a.panoptic, b.panoptic)
    assert stages


def hard_cases(data: Shapes, model: Method) -> dict[str, dict]:
    """A training sample, made difficult in ways that real data are."""
    samples = data.samples("train", train=True, supervision=model.supervision)
    samples.segments = getattr(model, "needs_segments", False)
    usual = samples.sample(0, 0)
    of_image = ("tags", "stuff_tags", "complete")
    objects = {key: value for key, value in usual["target"].items() if key not in of_image}
    complete = {"complete": torch.ones(8).bool()} if "complete" in usual["target"] else {}
    few = usual["proposals"]
    none = Proposals(
        few.boxes[:0], few.scores[:0], few.labels, None if few.members is None else few.members[:0]
    )
    pixel = usual["proposals"].boxes.clone()
    pixel[:, 2:] = pixel[:, :2] + 1
    return {
        "no tag": {
            **usual,
            "target": {
                "tags": torch.zeros(8),
                **complete,
                **{key: value[:0] for key, value in objects.items()},
            },
        },
        "no proposal": {**usual, "proposals": none},
        "one-pixel proposals": {**usual, "proposals": usual["proposals"]._replace(boxes=pixel)},
        "every tag": {**usual, "target": {"tags": torch.ones(8), **complete, **objects}},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("case", ["no tag", "no proposal", "one-pixel proposals", "every tag"])
def test_hard_samples_give_finite_gradients_and_predictions(name, case, data):
    model = build(name)
    model.log = model.log_dict = lambda *_, **__: None  # no trainer listens
    sample = hard_cases(data, model)[case]
    loss = model.training_step([sample], 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if predicts(name):
        with torch.no_grad():
            (found,) = model.eval().predict_step([sample], 0)
        assert found.scores.isfinite().all()
        assert len(found.masks) == len(found.boxes) == len(found.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if predicts(name)])
def test_predictions_are_what_the_glossary_says(name, data):
    for found in predictions(build(name), data):
        assert found.boxes.dtype == torch.float32
        assert (found.scores[:-1] >= found.scores[1:]).all()
        assert ((found.labels >= 0) & (found.labels < 8)).all()
        assert all(mask["size"] == list(found.size) for mask in found.masks)


def _rank(rank: int, port: int, argv: list[str], said: Path) -> None:
    """One of two processes, as torchrun and Slurm start them."""
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": 2,
        "NODE_RANK": 0,
        "LOCAL_RANK": rank,
    }
    os.environ |= {name: str(value) for name, value in group.items()}
    rank_zero_only.rank = rank  # Lightning read it when imported, before this environment
    torch.set_num_threads(1)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    fit.main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_together(name, root, tmp_path):
    flags = [
        *words(name, root, tmp_path / "run", steps=2),
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        FORK.Process(target=_rank, args=(rank, port, flags, tmp_path / f"{rank}.txt"))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "0.txt").read_text()[
        -3000:
    ]
    stages = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("*/stage.json")]
    assert stages
    assert all(stage["finished"] for stage in stages)
    assert all(
        stage["settings"]["processes"] == 2 for stage in stages if "processes" in stage["settings"]
    )
