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
    n^seed     seeds_per_class                 proposals per class that get a GrabCut mask

Where we follow the released code instead of the text, and why:

    eq. (2)    mean over classes with clamped scores; a sum makes the weight depend on the number of
               classes
    eq. (3)    cross-entropy divided by the number of weighted proposals, L1 by the number of all;
               the printed sums grow with P
    eq. (5)    a sign in L_BCE is wrong as printed; mean over proposals and pixels, unweighted;
               targets have no gradient and are cut at 0.5; `mask_target="soft"` is the text's. Cut
               targets need a long schedule: after 300 steps on the generated data hard heads say
               "everywhere" (IoU .62 in right boxes, as filled boxes have), soft ones .79
    eq. (6)    the class-agnostic head takes part in the correlation, too
    eq. (7)    on sigmoid probabilities; on logits the activation has no bound and cannot equal a
               score
    eq. (8)    absolute value, mean over proposals; the 2-norm of a number is that
    a-hat      the pseudo-label's score; the proposal's own score, as in the text, is
               `correlation_target="own"`
    features   pooled features are multiplied by the proposal's objectness + 1 (in neither text)
    NMS        0.3; the text says 0.5

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

    head 0       is class-agnostic as the text means it; the release sets a misspelt key
    mask target  is cut at 0.5 on its own 28 x 28 grid; the release pastes it into the image and
                 cuts the same box out again
    samples      masks and the choice of seeds use at most `max_mask_samples` matched proposals,
                 drawn at random
    views        deltas are averaged over views and decoded once; the code averages boxes
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from wsis.evidence.grabcut import resample
from wsis.evidence.seed_masks import Evidence, Request
from wsis.images.read import read_image
from wsis.losses import (
    correlation_loss,
    image_loss,
    instance_activation,
    mask_loss,
    mean_losses,
)
from wsis.method import Method, Stages, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.checkpoint import read_checkpoint
from wsis.nn.detection import (
    Detection,
    Detector,
    HeadWidths,
    MaskSamples,
    mask_samples,
    nearest_seeds,
    refine,
)
from wsis.nn.masks import (
    MaskHeads,
    MaskTarget,
    along_segments,
    next_target,
    of_class,
    paste,
    segments_in,
)
from wsis.nn.mil import MLPHead, detect
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.pixels import PixelClassifier
from wsis.nn.regions import Pooling, mean_and_contrast, pool
from wsis.nn.views import Inference, average, mean_masks, over_views
from wsis.parts.classifier import pretrain
from wsis.types import Batch, Prediction, Proposals, Sample, size_of

__all__ = ["PDSL"]


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
        evidence: Masks of seeds by fast colour models, by GrabCut as the authors run it, or the
            pixels of the seeds' own segments (section 4.5).
        mask_target: What a mask head teaches the next one, eq. (5): its probabilities, as in the
            text, or those cut at 0.5, as in the authors' code.
        mask_source: What predicts masks: the mask "heads", or "pixels", a classifier of pixels that
            learns the segments of the best proposals on whole images, and whose masks follow them.
        correlation_weight: Weight of the correlation loss, eq. (6); 0 switches it off.
        correlation_target: Score that a mask's activation should equal: the pseudo-label's or the
            proposal's own.
        image_weight: Weight of the image loss, which is a mean; `num_classes` makes it the text's
            sum.
        pooling: How regions are pooled for detection; the paper has roi_pool.
        objectness_power: Power of objectness in the scores that select proposals; 0 in the paper.
        context: Side of the ring, in sides of the region, whose contrast linear heads read; 0 has
            the paper's layers.
        background_weight: Weight of background proposals in the refinement loss; 1 in the paper.
        widths: Widths of the heads.
        max_mask_samples: Largest number of proposals of an image that train masks; the paper uses
            all matched ones.
        optimisation: How weights are optimised.
        inference: How images are predicted.
    """

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pretraining: dict[str, Any] | None = None,
        refinements: int = 4,
        regression: bool = True,
        mask_heads: int = 4,
        seeds_per_class: int = 10,
        evidence: Literal["fast", "authors", "segments"] = "fast",
        mask_target: MaskTarget = "cut",
        mask_source: Literal["heads", "pixels"] = "heads",
        correlation_weight: float = 1.0,
        correlation_target: Literal["pseudo", "own"] = "pseudo",
        image_weight: float = 1.0,
        pooling: Pooling = "roi_pool",
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
        self.needs_segments = evidence == "segments" or mask_source == "pixels"
        self.evidence = None if evidence == "segments" else Evidence(evidence)

    def stages(self, run: Stages, data: Any) -> None:
        """Train a classifier first if `pretraining` asks for one, then PDSL."""
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
        total = mean_losses([losses for losses, _ in pairs])  # eq. (4)
        samples = [matched for _, matched in pairs]
        labels = torch.cat([s.labels for s in samples])
        scores = torch.cat([s.scores for s in samples])
        target = self.seed_masks(samples, batch)
        regions = pool(features, [s.boxes for s in samples], self.backbone.stride, 14, "roi_align")
        total["mask"] = total["correlation"] = features.new_zeros(())
        for channels in self.masks(regions):
            logits = of_class(channels, labels)
            activation = instance_activation(logits.sigmoid())  # eq. (7)
            total["mask"] = total["mask"] + mask_loss(logits, target)  # eq. (5)
            correlation = correlation_loss(activation, scores)  # eq. (8)
            total["correlation"] = total["correlation"] + correlation  # eq. (6)
            target = next_target(logits, self.hparams["mask_target"])
        if self.pixels is not None:
            total["pixels"] = self.pixels_loss(self.pixels, features, samples, batch)
        weights = {"correlation": self.hparams["correlation_weight"]}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in total.items()]).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def detection(self, features: Tensor, proposals: list[Proposals]) -> list[Detection]:
        """Run the detection branch (section 3.2) on proposals, from features (N,D,H,W)."""
        boxes, stride = [p.boxes for p in proposals], self.backbone.stride
        if self.hparams["context"]:
            pooled = mean_and_contrast(features, boxes, stride, self.hparams["context"])
        else:
            pooled = pool(features, boxes, stride, how=self.hparams["pooling"])
        return self.detector(pooled, boxes, torch.cat([p.scores for p in proposals]))

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
        most = self.hparams["max_mask_samples"]
        samples = mask_samples(proposals, learnt.pseudo, learnt.matched, most)
        if self.hparams["correlation_target"] == "own":
            own = learnt.scores[samples.proposals, samples.labels]
            samples = samples._replace(scores=own)
        elif not heads.logits:  # without refinement heads S^0 sums to y: y is the comparable score
            samples = samples._replace(scores=learnt.pseudo.weights[samples.pseudo])
        return losses, samples

    def seed_masks(self, samples: Sequence[MaskSamples], batch: Batch) -> Tensor:
        """Return the first masks (K,28,28), section 3.3.

        n^seed proposals per class get bottom-up evidence, the others the mask of their nearest
        seed.
        """
        seeds = [nearest_seeds(s, self.hparams["seeds_per_class"]) for s in samples]
        if self.evidence is None:
            rows = zip(samples, seeds, batch, strict=True)
            return torch.cat([segments_of_seeds(m, index, s["proposals"]) for m, index, s in rows])
        boxes = [s["view"].to_original(m.boxes) for m, s in zip(samples, batch, strict=True)]
        chosen = [b[index] for b, index in zip(boxes, seeds, strict=True)]
        requests = [
            Request(s["image_id"], partial(read_image, s["path"], s["size"]), c)
            for s, c in zip(batch, chosen, strict=True)
        ]
        found = self.evidence(requests)
        masks = []
        for (windows, evidence), b, c, s in zip(found, boxes, chosen, batch, strict=True):
            nearest = box_iou(b, c).argmax(1) if len(c) else b.new_zeros(0, dtype=torch.int64)
            target = resample(windows.to(b.device), evidence.to(b.device), nearest, b, 28)
            masks.append(target.flip(-1) if s["view"].flip else target)
        return torch.cat(masks).round()

    def pixels_loss(
        self,
        pixels: PixelClassifier,
        features: Tensor,
        samples: Sequence[MaskSamples],
        batch: Batch,
    ) -> Tensor:
        """Learn the segments of the best proposals, from features (N,D,H,W) of whole images."""
        cell = self.backbone.stride / 4
        for maps, found, sample in zip(features, samples, batch, strict=True):
            height, width = (round(side / cell) for side in size_of(sample["image"]))
            pixels.remember(maps, *best_segments(found, sample["proposals"], (height, width), cell))
        return pixels.loss()

    def predict(self, sample: Sample) -> Prediction:
        """Average scores and boxes over views of the image, suppress, then average masks."""
        proposals, size = sample["proposals"], size_of(sample["image"])
        views, features, heads = over_views(sample, self.inference, self.backbone, self.detection)
        scores, boxes = average(heads, views, proposals.boxes, size)
        objectness = proposals.scores[:, None] ** self.hparams["objectness_power"]
        boxes, scores, labels, _ = detect(scores * objectness, boxes, self.inference.nms)
        logits = partial(self.mask_logits, labels=labels)
        masks = mean_masks(features, views, boxes, self.backbone.stride, logits)
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


def segments_of_seeds(samples: MaskSamples, seeds: Tensor, proposals: Proposals) -> Tensor:
    """Return first masks (K,28,28): in each box, the segment of its nearest seed.

    Args:
        samples: K proposals that train masks.
        seeds: (S,) int64, positions in `samples`.
        proposals: of the image, with segments.
    """
    nearest = box_iou(samples.boxes, samples.boxes[seeds]).argmax(1) if len(seeds) else seeds
    index = samples.proposals[seeds[nearest]]
    return segments_in(proposals, index, samples.boxes, (28, 28)).to(samples.boxes.dtype)


def best_segments(
    samples: MaskSamples, proposals: Proposals, size: tuple[int, int], cell: float
) -> tuple[Tensor, Tensor]:
    """Return the classes (G,) of pseudo-labels, and the segment (G,h,w) of each in 0 and 1.

    It is that of the proposal nearest to the pseudo-label.

    Args:
        samples: K proposals that train masks.
        proposals: of the image, with segments.
        size: (h, w) of the segments, which begin at the image's top left corner.
        cell: side in pixels of one element.
    """
    best = nearest_seeds(samples, 1)
    area = samples.boxes.new_tensor([0, 0, size[1] * cell, size[0] * cell])
    masks = segments_in(proposals, samples.proposals[best], area.expand(len(best), 4), size)
    return samples.labels[best], masks.to(area.dtype)
