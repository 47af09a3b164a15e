"""PDSL: parallel detection-and-segmentation learning for weakly supervised instance segmentation.

Shen et al., ICCV 2021. Tags alone train two branches on the same proposals. The detection branch is
WSDDN with refinement heads. The segmentation branch learns from GrabCut inside a few boxes, first
without classes, then class by class from its own predictions. A correlation loss makes the
activation of a proposal's mask equal the score of its detection.

    symbol     name                shape
    t          tags                (C,)        1 where the image holds the class
    S^0        mil                 (P,C)       two-stream scores
    y          image_scores        (C,)        sum of S^0 over the proposals
    S^r        probabilities       (P,C+1)     softmax of refinement head r; background is class C
    B^r        boxes               (P,C,4)     boxes regressed by head r
    M^m        logits              (K,28,28)   mask head m on K matched proposals, in the channel of
                                               their class
    a, a-hat   activation, scores  (K,)        eq. (7), and the score it should equal
    n^r, n^m   refinements, mask_heads         number of refinement heads and of class-specific mask
                                               heads
    n^seed     seeds_per_class                 proposals per class that get a GrabCut mask; all of
                                               them train masks

Where we follow the released code instead of the text, and why:

    eq. (2)    mean over classes with clamped scores; a sum makes the weight depend on the number of
               classes
    eq. (3)    cross-entropy divided by the number of weighted proposals, L1 by the number of all;
               the printed sums grow with P
    eq. (5)    a sign in L_BCE is wrong as printed; mean over proposals and pixels, unweighted; a
               gradient into the target would pull each head towards the next
    eq. (6)    the class-agnostic head takes part in the correlation, too
    eq. (7)    on sigmoid probabilities; on logits the activation has no bound and cannot equal a
               score
    eq. (8)    absolute value, mean over proposals; the 2-norm of a number is that
    a-hat      the pseudo-label's score, and without gradient: a proposal that fits worse should
               not have a smaller mask, and scores should not follow how much of a box an object
               fills. The text's are `correlation_target="own"` and `correlation_gradient="both"`
    RoIAlign   has a sample for each cell in a bin (`roi_samples: 0`), where the text has no number
    features   pooled features are multiplied by the proposal's objectness + 1 (in neither text)
    NMS        0.3; the text says 0.5

Where we follow the text instead of the code:

    eq. (5)    the target is what the head before predicts; the code cuts it at 0.5, as
               `mask_target="cut"` does, and needs a long schedule: a mask that is not yet sure
               fills its box once it is cut, each head learns that from the one before, and unlearns
               it late
    head 0     is class-agnostic as the text means it; the code sets a misspelt key

What eq. (8) asks for is a property of the loss, not of the data: a right mask that fills half of
its box has an activation of .86, and no score knows the object's shape (`wsis.losses`).

Beyond both, for small data sets, and off by default:

    objectness_power     parts of objects score as well as whole ones: on the generated data the
                         best proposal of a class is a whole object in 6 of 10 images that hold the
                         class, in 3 without
    background_weight    most proposals are background, and class scores stay low in a short
                         schedule
    context              linear heads on a region's mean and its contrast to the ring around it,
                         started from the classifier of `pretraining`
    mask_source          mask heads see the insides of boxes alone, and after minutes of training
                         draw boxes with a ragged edge. "pixels" is a classifier of pixels that
                         learns on whole images, and whose masks follow the segments that fit

Where we differ from both:

    mask target  stays on its own 28 x 28 grid; the release pastes it into the image and cuts the
                 same box out again
    samples      masks are learnt by the seeds, which are chosen among all matched proposals, and
                 others at random, `max_mask_samples` in all
    cascade      Fig. 3 compares with learning masks from the gradient of detections, and does not
                 say how: `evidence="detector"`, without correlation, takes the gradient on the
                 seed's own pooled features
    views        deltas are averaged over views and decoded once; the code averages boxes
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsis.losses import (
    CorrelationGradient,
    correlation_loss,
    image_loss,
    instance_activation,
    mask_loss,
    mean_losses,
)
from wsis.method import Method, Stages, filled
from wsis.models.pdsl._settings import RANGES, check_context, idle
from wsis.models.pdsl.first_masks import FirstMasks, Source
from wsis.models.pdsl.pixels import pixels_loss
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.checkpoint import read_checkpoint
from wsis.nn.detection import (
    Detection,
    Detector,
    HeadWidths,
    MaskSamples,
    Refined,
    mask_samples,
    nearest_seeds,
    refine,
)
from wsis.nn.masks import MaskHeads, MaskTarget, along_segments, next_target, of_class, paste
from wsis.nn.mil import MLPHead, detect
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.pixels import PixelClassifier
from wsis.nn.regions import Pooling, mean_and_contrast, pool
from wsis.nn.views import Inference, average, mean_masks, over_views
from wsis.parts.classifier import pretrain
from wsis.types import Batch, Prediction, Proposals, Sample, size_of

__all__ = ["PDSL"]


CorrelationTarget = Literal["pseudo", "own"]

_WIDTHS = HeadWidths()
_INFERENCE = Inference()
_BACKBONE = BackboneSettings("resnet18_ws", output_stride=8, frozen_stages=5)
_OPTIMISATION = Optimisation("sgd", lr=0.01, warmup=0.0, weight_decay=5e-4, decay_at=(0.7,))


class PDSL(Method):
    """Detect and segment in parallel, from tags.

    Args:
        num_classes: Number of thing classes, C; taken from the data.
        backbone: The network that computes features.
        pretraining: Settings of a classifier that first trains the backbone, with its `steps`; null
            trains none.
        refinements: Number of refinement heads, n^r in eq. (4).
        regression: Whether refinement heads regress boxes.
        mask_heads: Number of class-specific mask heads, n^m in eq. (5); 0 leaves the class-agnostic
            one.
        seeds_per_class: Number of proposals per class whose first mask is bottom-up evidence,
            n^seed.
        evidence: Masks of seeds by GrabCut as the authors run it, by fast colour models, the
            segments of the seeds (section 4.5), or by the gradient of the detector, as in a cascade
            (Fig. 3).
        evidence_masks: COCO file of masks of the training images that are the evidence instead
            (section 4.5), such as one of wsis.label.
        mask_target: What a mask head teaches the next one, eq. (5): its probabilities, as in the
            text, or those cut at 0.5, as in the authors' code.
        mask_source: What predicts masks: the mask "heads", or "pixels", a classifier of pixels that
            learns the segments of the best proposals on whole images, and whose masks follow them.
        correlation_weight: Weight of the correlation loss, eq. (6); 0 switches it off.
        correlation_target: Score that a mask's activation should equal: the pseudo-label's or the
            proposal's own.
        correlation_gradient: What the correlation loss teaches: masks, as in the authors' code, or
            both masks and scores, as in the text.
        image_weight: Weight of the image loss, which is a mean; `num_classes` makes it the text's
            sum.
        pooling: How regions are pooled for detection; the paper has roi_pool.
        roi_samples: Samples of RoIAlign per side of a bin; 0 takes one for each cell that the side
            covers, as the authors' code does.
        objectness_power: Power of objectness in the scores that select proposals; 0 in the paper.
        context: Side of the ring, in sides of the region, whose contrast linear heads read; 0 has
            the paper's layers.
        background_weight: Weight of background proposals in the refinement loss; 1 in the paper.
        widths: Widths of the heads.
        max_mask_samples: Largest number of proposals of an image that train masks, if it has no
            more seeds; the paper uses all matched ones.
        optimisation: How weights are optimised.
        inference: How images are predicted.
    """

    ranges = RANGES

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pretraining: dict[str, Any] | None = None,
        refinements: int = 4,
        regression: bool = True,
        mask_heads: int = 4,
        seeds_per_class: int = 10,
        evidence: Source = "authors",
        evidence_masks: str = "",
        mask_target: MaskTarget = "soft",
        mask_source: Literal["heads", "pixels"] = "heads",
        correlation_weight: float = 1.0,
        correlation_target: CorrelationTarget = "pseudo",
        correlation_gradient: CorrelationGradient = "masks",
        image_weight: float = 1.0,
        pooling: Pooling = "roi_pool",
        roi_samples: int = 0,
        objectness_power: float = 0.0,
        context: float = 0.0,
        background_weight: float = 1.0,
        widths: HeadWidths = _WIDTHS,
        max_mask_samples: int = 512,
        optimisation: Optimisation = _OPTIMISATION,
        inference: Inference = _INFERENCE,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.inference = inference = filled(_INFERENCE, inference)
        widths = filled(_WIDTHS, widths)
        self.save_hyperparameters()
        check_context(context, evidence)
        self.backbone = Backbone(backbone)
        trunk: nn.Module = nn.Identity()
        features = 2 * self.backbone.channels
        if not context:
            trunk = MLPHead(self.backbone.channels * 49, widths.hidden, widths.features)
            features = widths.features
        self.detector = Detector(trunk, features, num_classes, refinements, regression)
        self.masks = MaskHeads(
            self.backbone.channels, [1] + [num_classes] * mask_heads, widths.mask
        )
        self.pixels = None
        if mask_source == "pixels":
            self.pixels = PixelClassifier(self.backbone.channels, widths.mask, num_classes)
        self.evidence = FirstMasks(evidence, evidence_masks)
        self.needs_segments = self.evidence.needs_segments or mask_source == "pixels"

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        return idle(self.hparams, self.backbone.frozen)

    def setup(self, stage: str) -> None:
        """Read the masks of a file, if they are the evidence."""
        super().setup(stage)
        if stage == "fit":
            self.evidence.read(self.trainer.datamodule)  # type: ignore[attr-defined]

    def stages(self, run: Stages, data: Any) -> None:
        """Train a classifier first if `pretraining` asks for one, then PDSL."""
        self.evidence.read(data)  # reports wrong masks before anything is trained
        if self.hparams["pretraining"]:
            linear = bool(self.hparams["context"])
            settings = self.backbone.settings
            classifier = pretrain(run, self, settings, data, self.backbone, with_head=linear)
            self.backbone.load(classifier)
            if linear:
                self.start_from(classifier)
        run.fit(self.stage_names()[-1], self, data)

    def stage_names(self) -> list[str]:
        """Return the names of the stages."""
        return ["1-classifier", "2-pdsl"] if self.hparams["pretraining"] else ["train"]

    def start_from(self, classifier: Path) -> None:
        """Initialise all heads with the last layer of a classifier's checkpoint."""
        state = read_checkpoint(classifier)["state_dict"]
        weight = state["head.weight"].flatten(1)
        self.detector.mil.start(weight, state["head.bias"])
        for head in self.detector.refinements:
            head.start(weight)  # type: ignore[operator]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_OD + L_IS + L_CL, eq. (1)."""
        features = self.backbone([sample["image"] for sample in batch])
        heads = self.detection(features, [sample["proposals"] for sample in batch])
        pairs = [self.detection_losses(h, s) for h, s in zip(heads, batch, strict=True)]
        total = mean_losses([losses for losses, _ in pairs])  # L_OD, eq. (4)
        samples = [matched for _, matched in pairs]
        total |= self.mask_losses(features, samples, batch)  # L_IS and L_CL
        if self.pixels is not None:
            cell = self.backbone.stride / 4
            total["pixels"] = pixels_loss(self.pixels, features, samples, batch, cell)
        weights = {"correlation": self.hparams["correlation_weight"]}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in total.items()]).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def detection(self, features: Tensor, proposals: list[Proposals]) -> list[Detection]:
        """Run the detection branch (section 3.2) on proposals, from features (N,D,H,W)."""
        boxes, reach = [p.boxes for p in proposals], self.hparams["context"]
        if reach:
            pooled = mean_and_contrast(features, boxes, self.backbone.stride, reach)
        else:
            pooled = self.pooled(features, boxes)
        return self.detector(pooled, boxes, torch.cat([p.scores for p in proposals]))

    def pooled(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Pool boxes (P_i,4) of each image for the detection branch, (P,D,7,7)."""
        how, samples = self.hparams["pooling"], self.hparams["roi_samples"]
        return pool(features, boxes, self.backbone.stride, how=how, samples=samples)

    def detection_losses(
        self, heads: Detection, sample: Sample
    ) -> tuple[dict[str, Tensor], MaskSamples]:
        """Train each head on the best proposals of the one before, eqs. (2)-(4); sample masks."""
        tags, proposals = sample["target"]["tags"], sample["proposals"].boxes
        objectness = sample["proposals"].scores ** self.hparams["objectness_power"]
        background, size = self.hparams["background_weight"], size_of(sample["image"])
        learnt = refine(heads, tags, proposals, size, objectness, background)  # eqs. (3), (4)
        losses = {
            "mil": self.hparams["image_weight"] * image_loss(heads.mil, tags),  # eq. (2)
            "refinement": learnt.refinement,
            "box": learnt.box,
        }
        most, seeds = self.hparams["max_mask_samples"], self.hparams["seeds_per_class"]
        samples = mask_samples(proposals, learnt.pseudo, learnt.matched, most, seeds)
        scores = target_scores(heads, learnt, samples, self.hparams["correlation_target"])
        return losses, samples._replace(scores=scores)

    def mask_losses(
        self, features: Tensor, samples: Sequence[MaskSamples], batch: Batch
    ) -> dict[str, Tensor]:
        """Teach each mask head the masks of the one before, and its activations the scores."""
        boxes, stride = [s.boxes for s in samples], self.backbone.stride
        regions = pool(features, boxes, stride, 14, "roi_align", self.hparams["roi_samples"])
        labels = torch.cat([s.labels for s in samples])
        scores = torch.cat([s.scores for s in samples])
        target = self.seed_masks(features, samples, batch)
        correlates = bool(self.hparams["correlation_weight"])
        gradient = self.hparams["correlation_gradient"]
        masks = correlation = features.new_zeros(())
        for channels in self.masks(regions):
            logits = of_class(channels, labels)
            masks = masks + mask_loss(logits, target)  # eq. (5)
            if correlates:
                activation = instance_activation(logits.sigmoid())  # eq. (7)
                distance = correlation_loss(activation, scores, gradient)  # eq. (8)
                correlation = correlation + distance  # eq. (6)
            target = next_target(logits, self.hparams["mask_target"])
        return {"mask": masks} | ({"correlation": correlation} if correlates else {})

    def seed_masks(self, features: Tensor, samples: Sequence[MaskSamples], batch: Batch) -> Tensor:
        """Return the first masks (K,28,28), section 3.3.

        n^seed proposals per class get bottom-up evidence, the others the mask of their nearest
        seed.
        """
        seeds = [nearest_seeds(s, self.hparams["seeds_per_class"]) for s in samples]
        return self.evidence(samples, seeds, batch, partial(self.activations, features, batch))

    def activations(
        self, features: Tensor, batch: Batch, regions: Sequence[MaskSamples]
    ) -> Sequence[Tensor]:
        """Return where the detector finds the classes of regions, (S,7,7) of each image."""
        pooled = self.pooled(features, [r.boxes for r in regions])
        scores = [s["proposals"].scores[r.proposals] for s, r in zip(batch, regions, strict=True)]
        labels = torch.cat([r.labels for r in regions])
        active = self.detector.activations(pooled, torch.cat(scores), labels)
        return torch.split(active, [len(r.labels) for r in regions])

    def predict(self, sample: Sample) -> Prediction:
        """Average scores and boxes over views of the image, suppress, then average masks."""
        proposals, size = sample["proposals"], size_of(sample["image"])
        views, features, heads = over_views(sample, self.inference, self.backbone, self.detection)
        scores, boxes = average(heads, views, proposals.boxes, size)
        objectness = proposals.scores[:, None] ** self.hparams["objectness_power"]
        boxes, scores, labels, _ = detect(scores * objectness, boxes, self.inference.nms)
        logits = partial(self.mask_logits, labels=labels)
        stride, count = self.backbone.stride, self.hparams["roi_samples"]
        masks = mean_masks(features, views, boxes, stride, logits, count)
        if self.pixels is not None:
            masks = along_segments(masks, boxes, proposals)
        found = boxes.cpu(), scores.cpu(), labels.cpu(), paste(masks, boxes, size)
        return Prediction(sample["image_id"], size, *found)

    def mask_logits(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Return masks of regions (N,D,14,14), in the channels of their classes.

        The mean (N,28,28) of the mask heads, or (N,56,56) of the classifier of pixels.
        """
        if self.pixels is not None:
            return of_class(self.pixels(regions), labels)
        channels = self.masks(regions)
        return torch.stack([of_class(c, labels) for c in channels[1:] or channels]).mean(0)

    def configure_optimizers(self) -> Any:
        """Optimise as `optimisation` says."""
        return optimise(self, self.optimisation)


def target_scores(
    heads: Detection, learnt: Refined, samples: MaskSamples, whose: CorrelationTarget
) -> Tensor:
    """Return the scores (K,) that masks' activations should equal, a-hat in eq. (8).

    Args:
        heads: of an image.
        learnt: scores and pseudo-labels of its last head.
        samples: K proposals that train masks.
        whose: the score of the "pseudo" label in the sample's class, or the sample's "own".
    """
    if whose == "own":
        return learnt.scores[samples.proposals, samples.labels]
    if not heads.logits:  # S^0 sums to y over the proposals: y is the comparable score
        return heads.mil.sum(0).clamp(1e-6, 1 - 1e-6)[samples.labels]
    best = learnt.pseudo.proposals[samples.pseudo]
    return learnt.scores[best, samples.labels]
