"""Run folders with a network, as wsis.fit leaves them but without training, to be shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from wsis.datasets.shapes import Shapes
from wsis.method import Method
from wsis.registry import path_of
from wsis.sharing.folder import CARD, MODEL, SETTINGS, WEIGHTS, write_digests

STAGE = "1-net"
BACKBONE = {"name": "test_byobnet", "weights": "none", "output_stride": 32, "frozen_stages": 0}
METRICS = {"val/AP50": 0.625, "val/AP": 0.25, "val/F1_threshold": 0.4, "val/loss": 3.0}


def make_run(folder: Path, model: Method, data: dict[str, Any] | None = None, **stage: Any) -> Path:
    """Write a finished run of a model with one stage; `stage` changes its record."""
    root = {"root": str(folder.parent / "photos/shapes"), "train": 2, "val": 2}
    arguments = dict(model.hparams)
    config = {
        "seed_everything": 7,
        "trainer": {"max_steps": 5, "default_root_dir": "/secret/place"},
        "model": {"class_path": path_of(model), "init_args": arguments},
        "data": data or {"class_path": "wsis.datasets.shapes.Shapes", "init_args": root},
        "wandb": {"entity": "somebody"},
    }
    shapes = Shapes()
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": arguments,
        "pytorch-lightning_version": pl.__version__,
        "Shapes": {"categories": shapes.categories, "stuff": shapes.stuff},
    }
    (folder / STAGE / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    torch.save(checkpoint, folder / STAGE / "checkpoints/last.ckpt")
    record = {"number": 1, "fingerprint": "0f", "finished": True, "steps": 5, "minutes": 2.5}
    record |= {"settings": {"model": path_of(model)}, "metrics": METRICS, "commit": "abc1234567"}
    (folder / STAGE / "stage.json").write_text(json.dumps(record | stage))
    return folder


def bare(folder: Path) -> Path:
    """Write the files of a shared model, with nothing in them that could be loaded."""
    (folder / STAGE).mkdir(parents=True)
    for name in (WEIGHTS, MODEL, SETTINGS, CARD, f"{STAGE}/stage.json"):
        (folder / name).write_text(f"content of {name}")
    write_digests(folder)
    return folder
