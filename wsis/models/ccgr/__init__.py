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
    "ADAM"      AdamW for detector and segmentation, and for Mask R-CNN its usual SGD, which the
                rate of .01 and the momentum fit; "epochs" are iterations
    networks    each branch has its own copy of the layers that the paper shares, because two
                branches label together; `carry` hands each on to the next round
    norms       with one image in a batch those of the backbone are fixed, and those of the
                segmentation are by groups
    sizes       images are labelled at the middle of the sizes that a branch trains at
    10 boxes    a bag without ten proposals has fewer; a peak without any is dropped
    peaks       those of the classifier's maps, not of back-propagated ones: only their positions
                matter
    shape       boxes end inside round objects, whatever the form: `whole` draws them around the
                object's connected part
    stop        a box stops before it takes in a second peak of its own class; from the second round
                on the peaks are the centres of the detections that bags lie around
    parts       an object with two peaks has two boxes; `merge` makes them one where eq. (3) says so
    detections  of tagged classes, the best of each and those above `score_threshold`, are the bags
                of the next round
    unions      a pixel in masks of several classes is labelled by the detection of highest score
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from wsis.data.transforms import Augment
from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet
from wsis.evidence.boxes import Form
from wsis.method import Method, Stages, filled
from wsis.models.ccgr.branches import BagDetector, Segmentation
from wsis.models.ccgr.pseudo_labels import Overlaps, write_first_labels, write_next_labels
from wsis.models.ccgr.refinement import Refinement
from wsis.nn.backbone import SET_FOR_EACH, Backbone, BackboneSettings
from wsis.parts.classifier import pretrain
from wsis.runs.stage import Stage
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, WHOLE, Range, Ranges

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
REFINEMENT = ("boxes", "refinement", "context", "form", "merge", "whole")
"""Settings that the boxes of the segmentor's labels depend on."""

_BACKBONE = BackboneSettings("resnet50", output_stride=16)


class CCGR(Method):
    """Learn instance masks from tags by three branches in turn.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network under classifier, detector and segmentation, with five feature maps;
            `feature_level` and `frozen_stages` are set for each of them. Classifier and Mask R-CNN
            start from its weights, detector and segmentation from the classifier.
        rounds: Number of times the branches are trained; the paper has three to five.
        carry: Whether each branch begins a round with its weights of the round before, as in the
            paper, or as it began the first.
        fresh_peaks: Whether boxes of later rounds stop at centres of the detections that they come
            from, or still at the classifier's peaks.
        overlaps: Class of a pixel in detections of several classes, as a label of the next round:
            that of the best "score", or the highest "class".
        bag_size: Largest number of proposals in a bag.
        penalty: Weight of a proposal's background in its rank, eq. (4).
        min_peak: Lowest peak of a class map, as a fraction of its maximum.
        peak_window: Side in cells, odd, of the window in which a peak is the maximum.
        peak_smoothing: Side in cells, odd, of the square over which class maps are averaged first.
        scales: Factors on the image's size over which class activation maps are averaged.
        walk_steps: Steps of the random walk along affinities; 0 takes class activation maps as they
            are.
        background_score: Score of background where pixels are labelled by class activation maps.
        label_side: Short side in pixels that images are scaled to where classifier, detector and
            segmentation label them; 0 keeps their size. By default the middle of the sides that the
            branch trains at.
        boxes: Boxes that are refined: those chosen by the detector, or one around each class of the
            segmentation.
        refinement: Steps of gradient descent on the centre-context gap; 0 leaves boxes as they are.
        context: Side of the surrounding box, in sides of the box.
        form: Form of the gap: "ring", or "printed" as in the paper.
        merge: Whether two boxes of a class are merged where the gap of their union is no higher
            than that of either; objects that touch are then one.
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

    ranges: ClassVar[Ranges] = {
        COUNT: ("rounds", "bag_size", "peak_window", "peak_smoothing"),
        WHOLE: ("walk_steps", "label_side", "refinement"),
        NOT_NEGATIVE: ("penalty",),
        POSITIVE: ("scales",),
        FRACTION: ("min_peak", "background_score", "score_threshold"),
        Range(1, above=True): ("context",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        rounds: int = 3,
        carry: bool = True,
        fresh_peaks: bool = True,
        overlaps: Overlaps = "score",
        bag_size: int = 10,
        penalty: float = 0.1,
        min_peak: float = 0.5,
        peak_window: int = 3,
        peak_smoothing: int = 1,
        scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
        walk_steps: int = 256,
        background_score: float = 0.25,
        label_side: int | None = None,
        boxes: Literal["detector", "segmentation"] = "detector",
        refinement: int = 200,
        context: float = 1.5,
        form: Form = "ring",
        merge: bool = False,
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
        for name, side in (("peak_window", peak_window), ("peak_smoothing", peak_smoothing)):
            if side % 2 == 0:
                raise InputError(f"model.{name} {side}: give an odd number of cells")
        if not scales:
            raise InputError("model.scales is empty; give at least one factor, such as [1.0]")

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        found = dict(SET_FOR_EACH)
        names: tuple[str, ...]
        if self.hparams["rounds"] == 1:
            names = ("carry", "fresh_peaks", "overlaps", "score_threshold")
            found |= dict.fromkeys(names, "with rounds 1")
        if not self.hparams["refinement"] and not self.hparams["merge"]:
            names = ("context", "form")
            found |= dict.fromkeys(names, "with refinement 0 and merge false")
        return found

    def stages(self, run: Stages, data: Any) -> None:
        """Train the classifier and affinities, then three branches and the segmentor in rounds."""
        affinity, branches = self.affinity(), self.branches()
        check_depth(affinity.model.backbone, branches)
        for stage in (affinity, *branches):
            stage.check(data)
        classifier = pretrain(run, self, self.settings, data)
        affinity.model.start(classifier)
        affinity.train(run, "2-affinity", data)
        settings = {name: self.hparams[name] for name in FIRST_LABELS}
        settings["side"] = self.label_side("pretraining", data)
        produce = partial(write_first_labels, net=affinity.model, data=data, **settings)
        labels = run.make("3-evidence", produce, **settings)
        peaks, trained = labels / "peaks.json", Trained()
        for number in range(1, self.hparams["rounds"] + 1):
            name, start = f"round-{number}", trained if self.hparams["carry"] else Trained()
            trained = self.train_round(run, data, name, branches, classifier, labels, peaks, start)
            if number < self.hparams["rounds"]:
                labels = self.next_labels(run, data, name, branches.segmentor.model)
                peaks = labels / "peaks.json" if self.hparams["fresh_peaks"] else peaks
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
        start: Trained,
    ) -> Trained:
        """Train detector and segmentation on a round's labels, the segmentor on refined boxes."""
        detector, segmentation, segmentor = branches
        detector.model.backbone.load(classifier)
        segmentation.model.backbone.load(classifier)
        bags, pixels = labels / "bags.json", labels / "pixels.json"
        one = detector.train(run, f"{name}-detector", data, bags, start.detector)
        two = segmentation.train(run, f"{name}-segmentation", data, pixels, start.segmentation)
        sides = self.label_side("detector", data), self.label_side("segmentation", data)
        chosen = {setting: self.hparams[setting] for setting in REFINEMENT}
        refinement = Refinement(detector.model, segmentation.model, peaks, sides, **chosen)
        masks = run.label(f"{name}-labels", refinement, data.variant(bags))
        three = segmentor.train(run, f"{name}-segmentor", data, masks, start.segmentor)
        return Trained(one, two, three)

    def next_labels(self, run: Stages, data: Any, name: str, segmentor: Method) -> Path:
        """Write the next round's labels from the segmentor's detections on training images."""
        detections = run.label(
            f"{name}-detections", segmentor, data, self.hparams["score_threshold"]
        )
        settings = {"size": self.hparams["bag_size"], "overlaps": self.hparams["overlaps"]}
        produce = partial(write_next_labels, detections=detections, data=data, **settings)
        return run.make(f"{name}-evidence", produce, **settings)

    def label_side(self, branch: str, data: Any) -> int:
        """Return the short side in pixels at which the branch of a setting labels; 0 for any."""
        if (given := self.hparams["label_side"]) is not None:
            return int(given)
        augment = (self.hparams[branch] or {}).get("augment")
        return trained_side(Augment(**augment) if augment else data.augment)

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


class Trained(NamedTuple):
    """Checkpoints of the networks of one round; None where there is none to begin with."""

    detector: Path | None = None
    segmentation: Path | None = None
    segmentor: Path | None = None


def trained_side(augment: Augment) -> int:
    """Return the middle short side (px) of whole images in training; 0 if images keep their size.

    A crop of a fraction of the image is scaled to these sides, so the whole is larger by as much.
    """
    sides = sorted(augment.short_sides)
    return round(sides[len(sides) // 2] / augment.crop) if sides else 0


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
