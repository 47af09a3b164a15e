"""The base of all data modules: from an index to batches with the labels a method may use."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from wsis.data.labels import relabel
from wsis.data.loading import Loading, batches
from wsis.data.samples import Samples, Transform
from wsis.data.simulated import Simulation, simulate
from wsis.data.summary import brief
from wsis.data.targets import check_fields, require_labels
from wsis.data.transforms import PHOTOGRAPHS, Augment
from wsis.errors import InputError
from wsis.fingerprint import digest
from wsis.method import Method
from wsis.types import Batch, Index, Record
from wsis.values import COUNT, check_ranges

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["Augment", "DataModule", "Loading"]


_LOADING = Loading()


class DataModule(pl.LightningDataModule):
    """A data set for Lightning; a subclass defines `read`, which returns the index of a split.

    A subclass adds its own settings and passes on those below with
    `super().__init__("name", root, **settings)`. The command line's options and help come from
    these arguments.

    Args:
        name: Name of the data set in files and messages.
        folder: Folder of the data set and of files made for it.
        labels: COCO json to train on, as wsis.label writes it; empty uses the data set's labels.
        simulate: Weaker labels to train on, drawn from these labels by shares, such as {"box": 1}
            or {"mask": 0.05, "point": 0.95}; null trains on what is labelled.
        proposals: Proposer ("segments", "ncut"), file or folder of proposals, or "none".
        max_proposals: Maximum number of proposals per image, highest ranked first.
        max_test_proposals: The same of images that are evaluated or labelled; null for as many as
            in training.
        augment: Augmentation of training images.
        loading: Settings of the data loader.
    """

    writes_beside: bool = True
    """Whether proposals are kept in the data set's folder; if not, in the user's cache."""
    licence: str = "unknown"
    """Of images and labels, for the card of a shared model."""
    is_generated: bool = False
    """Whether the images are nobody's photos, so that a shared model may show one."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        labels: str = "",
        simulate: Simulation | None = None,
        proposals: str = "segments",
        max_proposals: int = 2000,
        max_test_proposals: int | None = None,
        augment: Augment = PHOTOGRAPHS,
        loading: Loading = _LOADING,
    ) -> None:
        super().__init__()
        limits = {"max_proposals": max_proposals, "max_test_proposals": max_test_proposals}
        check_ranges("data", limits, {COUNT: tuple(limits)})
        self.name, self.folder = name, Path(folder)
        self.relabelled = Path(labels) if labels else None
        self.simulation = simulate
        self.proposals, self.max_proposals = proposals, max_proposals
        self.max_test_proposals = max_test_proposals or max_proposals
        self.augment, self.loading = augment, loading
        self.transform: Transform | None = None
        self.views = 1
        self.others: dict[str, DataModule] = {}
        self._indices: dict[str, Index] = {}

    def __str__(self) -> str:
        """Return a short name for error messages; Lightning's version would load every split."""
        return f"{self.name} in {self.folder}"

    def __repr__(self) -> str:
        """Return class, folder, sizes of the splits and classes, which are read if need be."""
        try:
            splits = ("train", "val") if self.has_val else ("train",)
            content = brief({split: self.index(split) for split in splits})
        except InputError as error:
            content = str(error)
        return f"{type(self).__name__}({str(self.folder)!r}: {content})"

    def idle(self) -> dict[str, str]:
        """Return the constructor arguments that have no effect beside the others, as `Method`'s."""
        return {f"augment.{name}": reason for name, reason in self.augment.idle().items()}

    def read(self, split: str) -> Index:
        """Read the index of a split from disk."""
        raise NotImplementedError

    @property
    def has_val(self) -> bool:
        """Whether the data set has a validation split."""
        return True

    def index(self, split: str) -> Index:
        """Return the index of a split ("train" or "val"), which is read once."""
        if split not in self._indices:
            index = self.read(split)
            if split == "train" and self.relabelled:
                index = relabel(index, self.relabelled)
            if split == "train" and self.simulation:
                index = simulate(index, self.simulation)
            if not index.images:
                raise InputError(
                    f"{self.name} has no {split} images in {index.root}; check lists and settings"
                )
            self._indices[split] = index
        return self._indices[split]

    def variant(
        self,
        labels: Path | None = None,
        augment: Augment | None = None,
        batch_size: int | None = None,
        transform: Transform | None = None,
        views: int | None = None,
    ) -> Self:
        """Return a copy for another stage with the given settings replaced; tags do not change.

        Args:
            labels: COCO json whose annotations replace those of the training set.
            augment: Augmentation of training images.
            batch_size: Images per step and process.
            transform: Changes training samples before augmentation.
            views: Independently augmented samples per training image; see `Samples`.

        Raises:
            InputError: The images or classes of `labels` differ from those of the data set.
        """
        other = copy.copy(self)
        other.trainer, other.augment = None, augment or self.augment
        other.loading = replace(self.loading, batch_size=batch_size or self.loading.batch_size)
        other.transform, other.views = transform or self.transform, views or self.views
        if labels:
            index = relabel(self.index("train"), labels)
            other.relabelled, other._indices = labels, {**self._indices, "train": index}
        return other

    def without(self, split: str, images: AbstractSet[int]) -> Self:
        """Return a copy whose split lacks the images of these ids."""
        index, other = self.index(split), copy.copy(self)
        kept = [image for image in index.images if image["id"] not in images]
        other._indices = {**self._indices, split: index._replace(images=kept)}
        return other

    def with_loaders(self, **others: DataModule) -> Self:
        """Return a copy whose training batches come with a batch of each of `others`.

        A training batch is then a dictionary with this data set's batch under "images" and the
        others' under the names given here. Each data set has its own batch size, order and
        augmentation.
        """
        other = copy.copy(self)
        other.trainer, other.others = None, {**self.others, **others}
        return other

    def as_annotated(self) -> Self:
        """Return a copy with the original training annotations, for evaluation."""
        if self.relabelled is None and self.simulation is None:
            return self
        other = copy.copy(self)
        other.relabelled = other.simulation = None
        other._indices = {
            split: index for split, index in self._indices.items() if split != "train"
        }
        return other

    @property
    def categories(self) -> list[Record]:
        """The thing classes in order, each with id and name."""
        return self.index("train").categories

    @property
    def class_names(self) -> list[str]:
        """The names of the thing classes in order."""
        return [category["name"] for category in self.categories]

    @property
    def num_classes(self) -> int:
        """The number of thing classes."""
        return len(self.categories)

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order, each with id and name."""
        return list(self.index("train").stuff)

    @property
    def num_stuff(self) -> int:
        """The number of stuff classes."""
        return len(self.stuff)

    def prepare_data(self) -> None:
        """Write, in one process, the generated data and proposals that the stage will read."""
        for other in self.others.values() if self._stage() == "fit" else ():
            other.index("train")
        for split in self._splits():
            self.index(split)
            if self.trainer is not None:  # the model decides whether proposals are needed
                self.proposal_file(split)

    def proposal_file(self, split: str, workers: int | None = None) -> ProposalFile | None:
        """Return the proposals of a split, making missing ones; None if none are used.

        Args:
            split: "train" or "val".
            workers: Processes that make proposals; one per core if None.
        """
        if self.proposals == "none" or not self._needs().needs_proposals:
            return None
        from wsis.proposals.source import proposals_of_index

        found = self.index(split), self.folder, self.proposals
        return proposals_of_index(*found, workers, self.writes_beside)

    def samples(
        self,
        split: str,
        train: bool,
        supervision: AbstractSet[str] | None = None,
        segments: bool | None = None,
    ) -> Samples:
        """Return the samples of a split: augmented for training, whole with truth for evaluation.

        Args:
            split: "train" or "val".
            train: Whether the samples are for training.
            supervision: Fields of `wsis.data.targets.FIELDS`; None takes those of the model.
            segments: Whether proposals have their superpixels; None takes what the model needs.

        Raises:
            InputError: The data set lacks the labels for training.
        """
        needs = self._needs()
        allowed = needs.supervision if supervision is None else supervision
        check_fields(allowed)
        if train and needs.needs_every_field:
            require_labels(self.index(split), allowed, self.relabelled)
        return Samples(
            self.index(split),
            allowed,
            self.augment if train else None,
            self.proposal_file(split),
            needs.needs_segments if segments is None else segments,
            self.max_proposals if train else self.max_test_proposals,
            needs.panoptic,
            self.transform if split == "train" else None,
            self.views,
        )

    def dataloader(self, split: str, train: bool, steps: int = 0) -> DataLoader[Batch]:
        """Return batches of a split: in (seed, step) order for training, else every image once.

        Args:
            split: "train" or "val".
            train: Whether the batches are for training.
            steps: Batches per epoch if the trainer counts epochs; 0 shows each image once.
        """
        return batches(self.samples(split, train), self.loading, self.trainer, train, steps)

    def train_dataloader(self) -> DataLoader[Batch] | CombinedLoader:
        """Return the training batches, with those of `others` if there are any."""
        images = self.dataloader("train", train=True)
        loaders = {"images": images}
        for name, other in self.others.items():
            attached = copy.copy(other)
            attached.trainer = self.trainer
            loaders[name] = attached.dataloader("train", train=True, steps=len(images))
        return CombinedLoader(loaders, "min_size") if self.others else images

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Return the validation images, or nothing without a validation split."""
        return self.dataloader("val", train=False) if self.has_val else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images, as the test annotations of most sets are not public."""
        return self.dataloader("val", train=False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images, or the training images without a validation split."""
        return self.dataloader("val" if self.has_val else "train", train=False)

    def fingerprint(self) -> str:
        """Return a hash of images, labels, proposals and augmentation, independent of paths."""
        index = self.index("train")
        parts: list[Mapping[int, Any]] = [index.annotations, index.tags, index.stuff_tags]
        parts += [index.complete] if index.complete else []
        by_image = [sorted(part.items()) for part in parts]
        asked = self.index("val").images if self.has_val else []
        learned = [index.images, index.categories, index.stuff, *by_image]
        settings = [
            asdict(self.augment),
            self.loading.batch_size,
            self.loading.seed,
            *(self.max_proposals, self.max_test_proposals),
            self.views,
            self.transform.content() if self.transform else None,
        ]
        others = {name: other.fingerprint() for name, other in self.others.items()}
        return digest([self.name, learned, asked, self._proposal_content(), settings, others])

    def state_dict(self) -> dict[str, Any]:
        """Return the classes, so that a checkpoint holds their names."""
        return {"categories": self.categories, "stuff": self.stuff}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise InputError for a checkpoint of other classes."""
        theirs, ours = [c["name"] for c in state_dict["categories"]], self.class_names
        if theirs != ours:
            raise InputError(
                f"the checkpoint knows the classes {', '.join(theirs)} but {self.name} has "
                f"{', '.join(ours)}; use the same data"
            )

    def _proposal_content(self) -> Any:
        if self.proposals == "none":
            return "none"
        from wsis.proposals.source import content_of

        return content_of(self.proposals, lambda: self.proposal_file("train"))

    def _model(self) -> pl.LightningModule | None:
        return None if self.trainer is None else getattr(self.trainer, "lightning_module", None)

    def _needs(self) -> type[Method] | Method:
        """Return the trainer's model, or the defaults of `Method` without a trainer."""
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
