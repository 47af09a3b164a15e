"""CCGR: masks from tags by centre-context-gap refinement of boxes.

From "Center-context-gap Refinement for WSIS", 2020.

Three branches are trained in turn, in rounds. A detector chooses one box from each bag of proposals
around a peak of the classifier's maps. A semantic segmentation learns where classes are. Boxes are
moved until the segmentation is high inside and low around them; what is segmented inside is the
mask that a segmentor learns, whose detections make the next round's labels.

    symbol        name            shape
    B             bag             (R,4)       the R proposals around one peak, or around one
                                              detection
    x_cls, x_det  streams         (R,C)       the detector's logits
    phi           scores.sum(0)   (C,)        scores of a bag
    S             maps            (C+1,H,W)   the segmentation's probabilities of the image's
                                              classes, background last
    O             foreground      (H,W)       class activation maps carried along affinities
    T             rounds                      number of times the branches are trained

Where the paper is silent, or cannot be meant:

    eq. (3)     Phi(C) is the mean over the ring; the printed difference of two means is no mean,
                and shrinks boxes
    "ADAM"      with the momentum given, AdamW; "epochs" are iterations
    10 boxes    a bag without ten proposals has fewer; a peak without any is dropped
    peaks       those of the classifier's maps, not of back-propagated ones: only their positions
                matter
    shape       boxes end inside round objects, whatever the form: `whole` draws them around the
                object's connected part
    stop        a box stops before it takes in a second peak of its own class
    detections  of tagged classes, the best of each and those above `score_threshold`, are the bags
                of the next round
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import masks_to_boxes

from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet
from wsis.evidence.boxes import Form, refine_boxes, surround_part
from wsis.files import read_json
from wsis.method import Method, Stages, filled
from wsis.models.ccgr.branches import BagDetector, Boxes, Segmentation
from wsis.models.ccgr.pseudo_labels import write_first_labels, write_next_labels
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.parts.classifier import pretrain
from wsis.runs.stage import Stage
from wsis.types import Batch, Prediction, Sample

__all__ = ["CCGR", "Refinement", "Segmentation"]

FIRST_LABELS = (
    "bag_size",
    "penalty",
    "min_peak",
    "peak_window",
    "peak_smoothing",
    "walk_steps",
    "scales",
    "background_score",
)
"""Settings that the first round's peaks, bags and pixel labels depend on."""


_BACKBONE = BackboneSettings("resnet50", output_stride=16)


class CCGR(Method):
    """Learn instance masks from tags by three branches in turn.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network under classifier, detector and segmentation, with five feature maps;
            `feature_level` and `frozen_stages` are set for each of them. The classifier starts from
            its weights, the others from the classifier.
        rounds: Number of times the branches are trained; the paper has three to five.
        bag_size: Largest number of proposals in a bag.
        penalty: Weight of a proposal's background in its rank, eq. (4).
        min_peak: Lowest peak of a class map, as a fraction of its maximum.
        peak_window: Side in cells, odd, of the window in which a peak is the maximum.
        peak_smoothing: Side in cells, odd, of the square over which class maps are averaged first.
        scales: Factors on the image's size over which class activation maps are averaged.
        walk_steps: Steps of the random walk along affinities; 0 takes class activation maps as they
            are.
        background_score: Score of background where pixels are labelled by class activation maps.
        boxes: Boxes that are refined: those chosen by the detector, or one around each class of the
            segmentation.
        refinement: Steps of gradient descent on the centre-context gap; 0 leaves boxes as they are.
        context: Side of the surrounding box, in sides of the box.
        form: Form of the gap: "ring", or "printed" as in the paper.
        whole: Whether a box is finally drawn around the connected part that it holds most of.
        score_threshold: Lowest score of a detection that makes a bag, unless it is the best of its
            class.
        pretraining: Settings of the classifier, with its `steps`.
        affinity: Settings of the affinity network, with its `steps`.
        detector: Settings of the detector, with its `steps`.
        segmentation: Settings of the semantic segmentation, with its `steps`.
        segmentor: Settings of the segmentor that is trained last, with its `steps`; `model` names
            another than mask_rcnn.
    """

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        rounds: int = 3,
        bag_size: int = 10,
        penalty: float = 0.1,
        min_peak: float = 0.5,
        peak_window: int = 3,
        peak_smoothing: int = 1,
        scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
        walk_steps: int = 256,
        background_score: float = 0.25,
        boxes: Literal["detector", "segmentation"] = "detector",
        refinement: int = 200,
        context: float = 1.5,
        form: Form = "ring",
        whole: bool = False,
        score_threshold: float = 0.5,
        pretraining: dict[str, Any] | None = None,
        affinity: dict[str, Any] | None = None,
        detector: dict[str, Any] | None = None,
        segmentation: dict[str, Any] | None = None,
        segmentor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()

    def stages(self, run: Stages, data: Any) -> None:
        """Train the classifier and affinities, then three branches and the segmentor in rounds."""
        affinity, branches = self.affinity(), self.branches()
        check_depth(affinity.model.backbone, branches)
        classifier = pretrain(run, self, self.settings, data)
        affinity.model.start(classifier)
        affinity.train(run, "2-affinity", data)
        settings = {name: self.hparams[name] for name in FIRST_LABELS}
        produce = partial(write_first_labels, net=affinity.model, data=data, **settings)
        labels = run.make("3-evidence", produce, **settings)
        peaks = labels / "peaks.json"
        for number in range(1, self.hparams["rounds"] + 1):
            self.train_round(run, data, f"round-{number}", branches, classifier, labels, peaks)
            if number < self.hparams["rounds"]:
                segmentor = branches.segmentor.model
                labels = self.next_labels(run, data, f"round-{number}", segmentor)
                branches = self.branches()

    def stage_names(self) -> list[str]:
        """Return the names of the stages."""
        rounds = range(1, self.hparams["rounds"] + 1)
        parts = ("detector", "segmentation", "labels", "segmentor", "detections", "evidence")
        names = [f"round-{number}-{part}" for number in rounds for part in parts]
        return ["1-classifier", "2-affinity", "3-evidence", *names[:-2]]  # no labels for a next one

    def train_round(
        self,
        run: Stages,
        data: Any,
        name: str,
        branches: Branches,
        classifier: Path,
        labels: Path,
        peaks: Path,
    ) -> None:
        """Train detector and segmentation on a round's labels, the segmentor on refined boxes."""
        detector, segmentation, segmentor = branches
        detector.model.backbone.load(classifier)
        segmentation.model.backbone.load(classifier)
        detector.train(run, f"{name}-detector", data, labels / "bags.json")
        segmentation.train(run, f"{name}-segmentation", data, labels / "pixels.json")
        settings = ("boxes", "refinement", "context", "form", "whole")
        chosen = (self.hparams[setting] for setting in settings)
        refinement = Refinement(detector.model, segmentation.model, peaks, *chosen)
        masks = run.label(f"{name}-labels", refinement, data.variant(labels / "bags.json"))
        segmentor.train(run, f"{name}-segmentor", data, masks)

    def next_labels(self, run: Stages, data: Any, name: str, segmentor: Method) -> Path:
        """Write the next round's labels from the segmentor's detections on training images."""
        threshold, size = self.hparams["score_threshold"], self.hparams["bag_size"]
        detections = run.label(f"{name}-detections", segmentor, data, threshold)
        produce = partial(write_next_labels, detections=detections, data=data, size=size)
        return run.make(f"{name}-evidence", produce, size=size)

    def affinity(self) -> Stage:
        """Return the affinity network, on the classifier's features."""
        classifier = (self.hparams["pretraining"] or {}).get("backbone") or {}
        backbone = self.settings.shared("output_stride") | classifier
        return self.part("affinity", AffinityNet, backbone)

    def branches(self) -> Branches:
        """Return detector, segmentation and segmentor, untrained."""
        backbone = self.settings.shared()
        untrained = backbone | {"weights": "none"}  # loaded from the classifier
        return Branches(
            self.part("detector", BagDetector, untrained),
            self.part("segmentation", Segmentation, untrained),
            self.part("segmentor", "mask_rcnn", backbone),
        )

    def part(self, setting: str, default: str | type[Method], backbone: dict[str, Any]) -> Stage:
        """Return the network that a setting describes, on a backbone."""
        shared = {"num_classes": self.hparams["num_classes"], "backbone": backbone}
        return Stage.of(setting, self.hparams[setting] or {}, default, **shared)


class Branches(NamedTuple):
    """The networks of one round."""

    detector: Stage
    segmentation: Stage
    segmentor: Stage


class Refinement(Method):
    """Label images by boxes of a trained detector, refined on maps of a trained segmentation.

    Args:
        detector: chooses a box of each bag.
        segmentation: makes the score maps.
        peaks: file of the images' peaks.
        boxes: "detector", or "segmentation" for one box around all pixels of a class.
        refinement: steps of gradient descent.
        context: side of the surrounding box, in sides of the box.
        form: of the gap.
        whole: whether boxes are finally drawn around connected parts.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False

    def __init__(
        self,
        detector: BagDetector,
        segmentation: Segmentation,
        peaks: Path,
        boxes: str = "detector",
        refinement: int = 200,
        context: float = 1.5,
        form: Form = "ring",
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("boxes", "refinement", "context", "form", "whole")
        self.detector, self.segmentation = detector, segmentation
        self.peaks = {
            int(image): torch.tensor(found).view(-1, 3) for image, found in read_json(peaks).items()
        }

    def label(self, batch: Batch, score_threshold: float = 0.0) -> list[Prediction]:
        """Return masks of refined boxes: the pixels in a box that are segmented as its class."""
        maps = [self.maps(sample) for sample in batch]
        if self.hparams["boxes"] == "detector":
            chosen = self.detector.choose(batch)
        else:
            chosen = [segmented(m) for m in maps]
        refined = self.refine(maps, chosen, [sample["image_id"] for sample in batch])
        if self.hparams["whole"]:
            context = self.hparams["context"]
            pairs = zip(maps, refined, strict=True)
            refined = [around_parts(m, boxes, context) for m, boxes in pairs]
        return [cut_out(s, m, b) for s, m, b in zip(batch, maps, refined, strict=True)]

    def maps(self, sample: Sample) -> Tensor:
        """Return probabilities (C+1,H,W) of tagged classes and background, 0 for other classes."""
        logits, (height, width) = self.segmentation([sample["image"]])[0], sample["size"]
        absent = F.pad(sample["target"]["tags"] == 0, (0, 1), value=False)
        return logits[:, :height, :width].masked_fill(absent[:, None, None], -torch.inf).softmax(0)

    def refine(self, maps: list[Tensor], chosen: list[Boxes], images: list[int]) -> list[Boxes]:
        """Refine the boxes of all images at once, each on its class's map up to a second peak."""
        pairs = torch.cat([F.pad(b.labels[:, None], (1, 0), value=n) for n, b in enumerate(chosen)])
        used, index = torch.unique(pairs, dim=0, return_inverse=True)
        needed = [maps[n][label] for n, label in used.tolist()]
        height, width = (max([m.shape[d] for m in needed], default=1) for d in (0, 1))
        padded = [F.pad(m, (0, width - m.shape[1], 0, height - m.shape[0])) for m in needed]
        table = torch.stack(padded) if padded else maps[0][:0]
        sizes = torch.tensor([m.shape for m in needed], device=table.device).view(-1, 2)
        peaks = [
            own
            for image, b in zip(images, chosen, strict=True)
            for own in self.peaks_of(image, b.labels)
        ]
        steps, context, form = (self.hparams[name] for name in ("refinement", "context", "form"))
        boxes = refine_boxes(
            torch.cat([b.boxes for b in chosen]), table, steps, context, form, peaks, index, sizes
        )
        parts = torch.split(boxes, [len(b.boxes) for b in chosen])
        return [b._replace(boxes=part) for b, part in zip(chosen, parts, strict=True)]

    def peaks_of(self, image: int, labels: Tensor) -> list[Tensor]:
        """For each box the peaks (n,2) of its class."""
        found = self.peaks[image]
        return [found[found[:, 0] == label, 1:].to(self.device) for label in labels.tolist()]


def check_depth(classifier: Backbone, branches: Branches) -> None:
    """Raise InputError for a branch with feature maps that the classifier it starts from lacks."""
    known = len(classifier.strides)
    for setting in ("detector", "segmentation"):
        needed = len(getattr(branches, setting).model.backbone.strides)
        if needed > known:
            raise InputError(
                f"model.{setting} needs {needed} feature maps of the backbone, but the classifier "
                f"that it starts from has {known}; give a higher "
                f"model.pretraining.backbone.feature_level, or a smaller depth to model.{setting}"
            )


def segmented(maps: Tensor) -> Boxes:
    """A box around all that is segmented (C+1,H,W) as each class; none where nothing is."""
    best = maps.argmax(0)
    labels = [label for label in torch.unique(best).tolist() if label < len(maps) - 1]
    masks = (
        torch.stack([best == label for label in labels])
        if labels
        else best.new_zeros(0, *best.shape).bool()
    )
    boxes = masks_to_boxes(masks) + masks.new_tensor([0, 0, 1, 1], dtype=torch.float32)
    scores = [maps[label][mask].mean() for label, mask in zip(labels, masks, strict=True)]
    return Boxes(
        boxes,
        torch.tensor(labels, device=maps.device, dtype=torch.int64),
        torch.tensor(scores, device=maps.device),
    )


def around_parts(maps: Tensor, boxes: Boxes, context: float) -> Boxes:
    """Draw boxes around the connected parts of what is segmented (C+1,H,W) as their classes."""
    masks = maps.argmax(0) == boxes.labels[:, None, None]
    return boxes._replace(boxes=surround_part(boxes.boxes, masks, context))


def cut_out(sample: Sample, maps: Tensor, chosen: Boxes) -> Prediction:
    """Return the pixels (C+1,H,W) in each box segmented as its class, without empty boxes."""
    best, masks, kept = maps.argmax(0).cpu().numpy(), [], []
    for k, ((x1, y1, x2, y2), label) in enumerate(
        zip(chosen.boxes.round().int().tolist(), chosen.labels.tolist(), strict=True)
    ):
        mask = np.zeros(best.shape, np.uint8, order="F")
        mask[y1:y2, x1:x2] = best[y1:y2, x1:x2] == label
        if mask.any():
            masks.append(rle.encode(mask))
            kept.append(k)
    left = Boxes(*(column[kept].cpu() for column in chosen))
    return Prediction(
        sample["image_id"], sample["size"], left.boxes, left.scores, left.labels, masks
    )
