"""What all data modules share: from an index to batches that hold what the model's supervision allows, and no more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import cv2
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from wsis.data.joint import JointSampler, JointSamples
from wsis.data.labels import relabel
from wsis.data.salient import read_salient
from wsis.data.samplers import Key, OrderSampler, StepSampler
from wsis.data.samples import Samples, Supervision
from wsis.data.transforms import Augment
from wsis.errors import InputError
from wsis.fingerprint import digest
from wsis.method import Method
from wsis.pasting.paster import Paste, Paster
from wsis.types import Batch, Index, Record

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["Augment", "DataModule", "Loading"]


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Args:
        batch_size: images per step and process.
        workers: loader processes; 0 loads in the training process, to the same batches.
        seed: of the order of the images and of all augmentation.
    """

    batch_size: int = 4
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that make no batch."""
        if self.batch_size < 1 or self.workers < 0 or self.seed < 0:
            raise InputError(
                f"{self}: batch_size must be at least 1, workers and seed not negative"
            )


class DataModule(pl.LightningDataModule):
    """A data set for Lightning: `read` gives its index, the rest is the same for all.

    Args:
        name: what the data set is called in files.
        folder: where things made for this data set are kept.
        proposals: name of a proposer ("segments" is built in), a file or folder of proposals, or "none".
        max_proposals: the best so many proposals of an image are used.
        augment: how training images are varied.
        loading: how batches are loaded.
        labels: a COCO json whose annotations replace those of the training set; empty keeps them.
        salient: folder of salient images and their masks, for models that learn from those too; empty has none.
        salient_limit: so many of the salient images are used; 0 uses all.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        proposals: str,
        max_proposals: int,
        augment: Augment,
        loading: Loading,
        labels: str = "",
        salient: str = "",
        salient_limit: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.folder, self.proposals, self.max_proposals = (
            name,
            Path(folder),
            proposals,
            max_proposals,
        )
        self.augment, self.loading, self.salient, self.salient_limit = (
            augment,
            loading,
            salient,
            salient_limit,
        )
        self.relabelled = Path(labels) if labels else None
        self.paste: Paste | None = None
        self._indices: dict[str, Index] = {}

    def __str__(self) -> str:
        """Name the data set, for error messages; Lightning's text would load every split to count it."""
        return f"{self.name} in {self.folder}"

    def read(self, split: str) -> Index:
        """Read the index of a split from disk."""
        raise NotImplementedError

    def read_salient(self) -> Index:
        """Read the salient images (the split "salient") from disk."""
        if not self.salient:
            raise InputError(
                "this model learns from salient images too: --data.salient DIR, with images and masks as DUTS-TR has"
            )
        return read_salient(Path(self.salient), self.salient_limit)

    @property
    def has_val(self) -> bool:
        """Whether there is a validation split."""
        return True

    def index(self, split: str) -> Index:
        """Give the index of a split ("train", "val"), read once."""
        if split not in self._indices:
            index = self.read_salient() if split == "salient" else self.read(split)
            if split == "train" and self.relabelled:
                index = relabel(index, self.relabelled)
            if not index.images:
                raise InputError(
                    f"{self.name} has no {split} images in {index.root}; check its lists and settings"
                )
            self._indices[split] = index
        return self._indices[split]

    def variant(
        self,
        labels: Path | None = None,
        augment: Augment | None = None,
        batch_size: int | None = None,
        paste: Paste | None = None,
    ) -> Self:
        """Give the same data for another stage; tags stay as they are.

        Args:
            labels: a COCO json whose annotations replace those of the training set; None keeps them.
            augment: how training images are varied, if not as before.
            batch_size: images per step and process, if not as before.
            paste: what is pasted on training images, if not as before.

        Raises:
            InputError: the file is of other images or other classes.
        """
        other = copy.copy(self)
        other.trainer, other.augment = None, augment or self.augment
        other.loading, other.paste = (
            replace(self.loading, batch_size=batch_size or self.loading.batch_size),
            paste or self.paste,
        )
        if labels:
            other.relabelled, other._indices = (
                labels,
                {**self._indices, "train": relabel(self.index("train"), labels)},
            )
        return other

    def as_annotated(self) -> Self:
        """Give the same data with the training set's own annotations, to judge by."""
        if self.relabelled is None:
            return self
        other = copy.copy(self)
        other.relabelled, other._indices = (
            None,
            {split: index for split, index in self._indices.items() if split != "train"},
        )
        return other

    @property
    def categories(self) -> list[Record]:
        """The thing classes in order: id and name."""
        return self.index("train").categories

    @property
    def class_names(self) -> list[str]:
        """The names of the thing classes in order."""
        return [category["name"] for category in self.categories]

    @property
    def num_classes(self) -> int:
        """How many thing classes there are."""
        return len(self.categories)

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order: id and name."""
        return self.index("train").stuff

    @property
    def num_stuff(self) -> int:
        """How many stuff classes there are."""
        return len(self.stuff)

    def prepare_data(self) -> None:
        """Make on disk, in one process, what the coming stage reads: the data where generated, and proposals."""
        if _salient_share(self._model()) and self._stage() == "fit":
            self.index("salient")
        for split in self._splits():
            self.index(split)
            if self.trainer is not None:  # only its model tells whether proposals are needed
                self.proposal_file(split)

    def proposal_file(self, split: str, workers: int | None = None) -> ProposalFile | None:
        """Return the proposals of a split, made now as far as they are missing; None with "none".

        Args:
            split: "train" or "val".
            workers: processes that make them; one per core if None.
        """
        if self.proposals == "none" or not self._needs().needs_proposals:
            return None
        from wsis.proposals.source import proposals_of_index

        return proposals_of_index(self.index(split), self.folder, self.proposals, workers)

    def samples(self, split: str, train: bool, supervision: Supervision | None = None) -> Samples:
        """Give the samples of a split, for training (varied, only what supervision allows) or evaluation (whole)."""
        fields = self._needs().supervision
        level = "masks" if "masks" in fields else "boxes" if "boxes" in fields else "tags"
        allowed = supervision or cast(Supervision, level)
        if train:
            _require(self.index(split), allowed, self.relabelled)
        return Samples(
            self.index(split),
            allowed,
            self.augment if train else None,
            self.proposal_file(split),
            self._needs().needs_segments,
            self.max_proposals,
            self._needs().panoptic,
            Paster(self.paste, self.class_names)
            if train and split == "train" and self.paste
            else None,
        )

    def dataloader(self, split: str, train: bool) -> DataLoader[Batch]:
        """Give batches of a split: in training by (seed, step), in evaluation every image once."""
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )
        samples: Dataset[Batch]
        if train:
            samples, sampler = self._training(split, rank, world)
        else:
            samples = whole = self.samples(split, train)
            sampler = OrderSampler(len(whole), self.loading.batch_size, rank, world)
        if self.loading.workers:
            cv2.setNumThreads(0)  # here, because a forked child that touches OpenCV's threads hangs
        return DataLoader(
            samples,
            batch_size=None,  # a key of the sampler is a batch already
            sampler=cast(Any, sampler),
            collate_fn=_as_is,  # the default turns tuples into lists
            num_workers=self.loading.workers,
            worker_init_fn=_begin_worker,
            generator=torch.Generator().manual_seed(
                self.loading.seed
            ),  # else the loader draws from the model's generator
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the training batches."""
        return self.dataloader("train", train=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Give the validation images, or nothing where there is no such split."""
        return self.dataloader("val", train=False) if self.has_val else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Give the validation images: the sets here keep their test annotations to themselves."""
        return self.dataloader("val", train=False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the validation images, or the training images where there is no such split."""
        return self.dataloader("val" if self.has_val else "train", train=False)

    def fingerprint(self, model: pl.LightningModule | None = None) -> str:
        """Hash what `model` learns from and is asked: images, labels, proposals and how they are varied, no paths."""
        index = self.index("train")
        by_image = [
            sorted(part.items()) for part in (index.annotations, index.tags, index.stuff_tags)
        ]
        asked = self.index("val").images if self.has_val else []
        learned = [index.images, index.categories, index.stuff, *by_image]
        settings = [
            asdict(self.augment),
            self.loading.batch_size,
            self.loading.seed,
            self.max_proposals,
        ]
        salient = self._salient_content() if _salient_share(model) else []
        pasted = [self.paste.content()] if self.paste else []
        return digest(
            [self.name, learned, asked, self._proposal_content(), settings, salient, *pasted]
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the classes, so that a checkpoint knows their names."""
        return {"categories": self.categories, "stuff": self.stuff}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes."""
        theirs, ours = (
            [c["name"] for c in categories]
            for categories in (state_dict["categories"], self.categories)
        )
        if theirs != ours:
            raise InputError(
                f"the checkpoint knows the classes {', '.join(theirs)} but {self.name} has {', '.join(ours)}; use the same data"
            )

    def _proposal_content(self) -> Any:
        if self.proposals == "none":
            return "none"
        from wsis.proposals.source import content_of

        return content_of(self.proposals, lambda: self.proposal_file("train"))

    def _salient_content(self) -> Any:
        index = self.index("salient")
        return [
            [image["file_name"], index.annotations[image["id"]][0]["segmentation"]]
            for image in index.images
        ]

    def _model(self) -> pl.LightningModule | None:
        return None if self.trainer is None else getattr(self.trainer, "lightning_module", None)

    def _needs(self) -> type[Method] | Method:
        """Return the model that samples are made for; without a trainer, what most methods need."""
        model = self._model()
        if model is None or isinstance(model, Method):
            return model or Method
        raise TypeError(f"{type(model).__name__} must derive from wsis.Method to be given samples")

    def _stage(self) -> str | None:
        return None if self.trainer is None else self.trainer.state.fn

    def _splits(self) -> Sequence[str]:
        stage = self._stage()
        val = ("val",) if self.has_val else ()
        return ("train", *val) if stage is None or stage == "fit" else val or ("train",)

    def _training(
        self, split: str, rank: int, world: int
    ) -> tuple[Dataset[Batch], Sampler[list[Key]]]:
        """Give the images to train on and their order; where the model asks, a share of each batch is of salient images."""
        samples, size = self.samples(split, train=True), self.loading.batch_size
        share = _salient_share(self._model())
        if not share:
            return samples, self._step_sampler(len(samples), size, rank, world)
        salient, count = (
            self.samples("salient", train=True, supervision="masks"),
            max(1, round(share * size)),
        )
        order = self._step_sampler(len(samples), max(1, size - count), rank, world)
        return JointSamples(samples, salient), JointSampler(
            order, self._step_sampler(len(salient), count, rank, world, len(order))
        )

    def _step_sampler(
        self, images: int, batch_size: int, rank: int, world: int, steps: int = 0
    ) -> StepSampler:
        """Give the order of images; `steps` is the length of one pass where the trainer counts in epochs."""
        seed, trainer = self.loading.seed, self.trainer
        one_pass = steps or -(-images // (batch_size * world))
        if trainer is None:
            return StepSampler(images, batch_size, seed, one_pass, rank=rank, world=world)
        accumulate = trainer.accumulate_grad_batches
        steps = trainer.max_steps * accumulate if trainer.max_steps > 0 else one_pass

        def position() -> int:
            passes, rest = divmod(
                trainer.global_step, -(-steps // accumulate)
            )  # a pass ends with a step
            return passes * steps + rest * accumulate

        return StepSampler(images, batch_size, seed, steps, position, rank, world)


def _salient_share(model: pl.LightningModule | None) -> float:
    return float(getattr(model, "salient_share", 0.0))


def _require(index: Index, supervision: Supervision, labels: Path | None) -> None:
    """Refuse to train with a supervision that the annotations do not have."""
    needed = {"tags": None, "boxes": "bbox", "masks": "segmentation"}[supervision]
    if needed and not any(a.get(needed) for found in index.annotations.values() for a in found):
        place = labels or index.root
        raise InputError(
            f"{index.name} has no {supervision} to train with in {place}; add them or take a model for tags"
        )


def _as_is(batch: Batch) -> Batch:
    return batch


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
