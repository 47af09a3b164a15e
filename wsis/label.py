"""Write pseudo-labels: `python -m wsis.label --run RUN --out pseudo.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from wsis.cli import Help
from wsis.data._coco_json import Index, write_coco
from wsis.inference import load
from wsis.messages import plain_errors
from wsis.metrics.results import read_results, to_annotations
from wsis.predict import parse, store_predictions
from wsis.types import Batch, Prediction

__all__ = ["label_images", "main", "tagged"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Label what `argv` names; returns the file."""
    with plain_errors():
        parser = ArgumentParser(prog="python -m wsis.label", description=__doc__, exit_on_error=False, formatter_class=Help)
        parser.add_function_arguments(label_images)
        return label_images(**parse(parser, argv))


def label_images(
    run: Path, out: Path, split: str = "train", score: float = 0.5, accelerator: str = "auto", devices: int = 1
) -> Path:
    """Write a model's labels of its own training images as a COCO instances file.

    A method that has its own way to label, such as refined boxes, uses it; of others, each tagged class gets its best
    detection and those above `score`.

    Args:
        run: Folder of a finished run.
        out: File to write: a COCO instances json with `score`, `source` and `ignore` for each annotation.
        split: Which images: train or val.
        score: Least score of a label that is not the best of its class.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        devices: How many of them.

    Raises:
        InputError: not a finished run, its data is not there, or the file cannot be written.
    """
    model, data, _ = load(run)
    index: Index = data.index(split)  # type: ignore[attr-defined]
    source = f"{type(model).__name__} trained from {getattr(model, 'supervision', 'tags')}, {run}"
    with TemporaryDirectory() as folder:
        results = store_predictions(_Labeller(model, score), data, split, Path(folder), accelerator, devices)
        if results is None:
            return out
        labels = read_results(results, index.images, index.categories)
    found = {p.image_id: [a for a in to_annotations(p, index.categories, source) if a["area"]] for p in labels}
    write_coco(out, index._replace(annotations=found))
    print(f"{sum(map(len, found.values()))} labels on {len(index.images)} images: {out}")
    return out


class _Labeller(pl.LightningModule):
    """Predicts a model's pseudo-labels."""

    def __init__(self, model: pl.LightningModule, score: float) -> None:
        super().__init__()
        self.model, self.score = model, score
        for name in ("supervision", "needs_segments", "needs_proposals"):  # what data asks a model
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        model: Any = self.model
        if hasattr(model, "label"):
            return model.label(batch)  # type: ignore[no-any-return]
        found = model.predict_step(batch, batch_idx)
        return [tagged(p, s["target"]["tags"], self.score) for p, s in zip(found, batch, strict=True)]


def tagged(prediction: Prediction, tags: Tensor, least_score: float) -> Prediction:
    """Keep detections of tagged classes: each class's best, and what reaches `least_score`.

    Args:
        prediction: of an image.
        tags: (C,) 1 where the image holds the class.
        least_score: of detections that are not their class's best.
    """
    labels, scores = prediction.labels.cpu(), prediction.scores.cpu()
    best = torch.full_like(tags.cpu(), -torch.inf).scatter_reduce(0, labels, scores.to(tags.dtype), "amax")
    first = _first_of_each(labels, scores == best[labels])
    kept = ((tags.cpu()[labels] > 0) & (first | (scores >= least_score))).nonzero().squeeze(1)
    masks = [prediction.masks[i] for i in kept.tolist()] if prediction.masks else []
    kept = kept.to(prediction.boxes.device)
    return prediction._replace(
        boxes=prediction.boxes[kept], scores=prediction.scores[kept], labels=prediction.labels[kept], masks=masks
    )


def _first_of_each(labels: Tensor, candidate: Tensor) -> Tensor:
    """Mark the first candidate of each label (N,): of equal scores one is the best."""
    earlier = (labels[:, None] == labels) & candidate & torch.ones(len(labels), len(labels)).tril(-1).bool()
    return candidate & ~earlier.any(1)


if __name__ == "__main__":
    main()
