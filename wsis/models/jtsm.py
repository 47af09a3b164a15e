"""JTSM: joint thing-and-stuff mining for weakly supervised panoptic segmentation (Shen et al., CVPR 2021).

Tags of things and stuff train a mining branch on segment proposals, whose features MoIPool takes from their own pixels. What
it mines is re-estimated with GrabCut and teaches an instance and a semantic branch; their masks merge to a panoptic map.

    symbol         name              shape
    t              tags              (C + S,)      1 where the image holds the thing or stuff class
    Phi^f          features          (N,D,H,W)     of the backbone
    Phi^p          pooled            (P,D,7,7)     MoIPool, eqs. (5)-(8): `wsis.ops.moi_pool`
    S^MIL          mil               (P,C + S)     two-stream scores
    y              image scores      (C + S,)      sum of S^MIL over the proposals
    M^IS, M-hat    logits, target    (K,28,28)     instance masks of K foreground proposals, eq. (9)
    M^SS, M-hat    logits, canvas    (S,H,W)       stuff, eq. (10); 255 where nothing is known
    n^r            refinements                     refinement heads

Where we follow the released code instead of the text, and why:

    eq. (2)     mean over classes with clamped scores; a sum makes the weight depend on the number of classes
    eq. (3)     softmax, the text forgets an exponential; over the number of weighted proposals
    n^r heads   things only: a box cannot tell stuff from the things on it, and boxes decide which proposals are positive
    seeds       ten proposals per thing get evidence, the others take the nearest one's; the text has one mask per class
    eq. (9)     mean over foreground and pixels, unweighted; a second head learns from the first's masks, and is used
    stuff       the best proposal by S^MIL, painted in ascending order of score
    regression  boxes are regressed; the text has none
    features    pooled features are multiplied by the proposal's objectness + 1 (in neither text)
    NMS         0.3; the text says 0.5
    test sides  eight; the text has five (480, 576, 688, 864, 1200), which the recipes take

As in PDSL, at most `foreground` matched proposals, drawn at random, train masks and are seeds, and deltas, not boxes, are
averaged over views.

Where we follow the text instead of the code:

    eq. (5)     the maximum over a bin's own cells, 0 where it has none, half-open bins
    eq. (7)     s^2 over non-empty bins, so that a full rectangle is RoIPool; `compensation="released"` counts one more
    GrabCut     pixels of the mined segment are sure foreground; the code starts from the box alone
    semantics   a learned head whatever the number of stuff classes; with one class it says "everywhere", as the code's dummy

`prior`, `background`, `image_weight`, `optimiser` and `warmup` are PDSL's, off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from wsis.errors import InputError
from wsis.evidence.grabcut import SIZE, Evidence, Request, resample
from wsis.images.read import read_image
from wsis.losses import NO_STUFF, image_loss, mask_loss, semantic_loss
from wsis.method import Method, Stages, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.detection import (
    Detection,
    Detector,
    Foreground,
    HeadWidths,
    foreground,
    nearest_seeds,
    refine,
)
from wsis.nn.masks import MaskHeads, of_class, paste, segment_masks, segments_of
from wsis.nn.mil import MLPHead, detect
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.panoptic import merge, paint
from wsis.nn.regions import Pooling, enlarge, pool, pool_segments
from wsis.nn.views import ImageView, Inference, average, image_views, mean_masks, proposals_in
from wsis.ops import segment_windows
from wsis.ops.moi_pool import Compensation
from wsis.parts.classifier import pretrain
from wsis.types import Batch, Prediction, Proposals, Sample, size_of

__all__ = ["JTSM"]


_WIDTHS = HeadWidths()
_INFERENCE = Inference()
_BACKBONE = BackboneSettings("resnet18_ws_v2", output_stride=8, frozen_stages=5)
_OPTIMISATION = Optimisation("sgd", lr=0.01, warmup=0.0, weight_decay=5e-4, decay_at=(0.7,))


class JTSM(Method):
    """Mine things and stuff together, from tags.

    Args:
        num_classes: Number of thing classes, C; taken from the data.
        num_stuff: Number of stuff classes, S; taken from the data.
        stuff: Whether stuff is mined; without it things alone are detected and segmented.
        instances: Whether the instance branch refines masks; else they are the mined segments.
        semantics: Whether the semantic branch refines stuff; else it is painted from mined segments.
        reestimate: Whether GrabCut re-estimates mined segments before they train a branch.
        backbone: The network that makes the features.
        pretraining: Settings of a classifier that first trains the backbone, with its `steps`; null trains none.
        pooling: How segments or boxes are pooled; the paper has moi_pool, shape-invariant.
        compensation: Factor of MoIPool for empty bins, eq. (7): bins, released or null.
        refinements: Number of refinement heads, n^r in eq. (4).
        regression: Whether refinement heads regress boxes.
        mask_heads: Number of instance heads; each learns the masks of the one before, and the last one predicts.
        seeds_per_class: Number of proposals per thing whose first mask is bottom-up evidence.
        image_weight: Weight of the image loss, which is a mean.
        objectness_power: Power of objectness in the scores by which things are chosen; 0 in the paper.
        background_weight: Weight of background proposals in the loss of refinement heads; 1 in the paper.
        widths: Widths of the heads; `mask` is also that of the semantic branch.
        max_mask_samples: Largest number of proposals of an image that train masks; the paper uses all matched ones.
        optimisation: How weights are optimised.
        inference: How images are predicted.
        score_threshold: Lowest score of an instance in the panoptic map.
        min_stuff_area: Fewest pixels of a stuff class in the panoptic map.
    """

    supervision = frozenset({"tags", "stuff_tags"})
    needs_segments = True

    def __init__(
        self,
        num_classes: int = 20,
        num_stuff: int = 1,
        stuff: bool = True,
        instances: bool = True,
        semantics: bool = True,
        reestimate: bool = True,
        backbone: BackboneSettings = _BACKBONE,
        pretraining: dict[str, Any] | None = None,
        pooling: Pooling | Literal["moi_pool", "moi_pool_interpolated"] = "moi_pool",
        compensation: Compensation = "bins",
        refinements: int = 4,
        regression: bool = True,
        mask_heads: int = 2,
        seeds_per_class: int = 10,
        image_weight: float = 1.0,
        objectness_power: float = 0.0,
        background_weight: float = 1.0,
        widths: HeadWidths = _WIDTHS,
        max_mask_samples: int = 512,
        optimisation: Optimisation = _OPTIMISATION,
        inference: Inference = _INFERENCE,
        score_threshold: float = 0.5,
        min_stuff_area: int = 4096,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.inference = inference = filled(_INFERENCE, inference)
        widths = filled(_WIDTHS, widths)
        self.save_hyperparameters()
        if stuff and not num_stuff:
            raise InputError(
                "these data know no stuff classes; mine things alone: --model.stuff false (COCO: --data.panoptic true)"
            )
        self.panoptic = stuff
        self.backbone = Backbone(backbone)
        channels, classes = self.backbone.channels, num_classes + num_stuff * stuff
        trunk = MLPHead(channels * 49, widths.hidden, widths.features)
        self.detector = Detector(
            trunk, widths.features, classes, refinements, regression, num_classes
        )
        self.masks = nn.ModuleList(
            MaskHeads(channels, [num_classes], widths.mask) for _ in range(mask_heads * instances)
        )
        self.semantic = (
            SemanticHead(channels, num_stuff, widths.mask) if stuff and semantics else None
        )
        self.evidence = Evidence()

    def stages(self, run: Stages, data: pl.LightningDataModule) -> None:
        """Train a classifier first where the backbone starts from nothing, then JTSM."""
        if self.hparams["pretraining"]:
            self.backbone.load(pretrain(run, self, self.backbone.settings, data))
        run.fit("2-jtsm" if self.hparams["pretraining"] else "train", self, data)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_PM + L_IS + L_SS, eq. (1)."""
        features = self.backbone([sample["image"] for sample in batch])
        heads = self.mining(features, [sample["proposals"] for sample in batch])
        losses, mined = zip(
            *(self.mining_losses(h, s) for h, s in zip(heads, batch, strict=True)), strict=True
        )
        total = {
            name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]
        }  # L_PM, eq. (4)
        if self.masks:
            total["instance"] = self.instance_loss(features, mined, batch)
        if self.semantic is not None:
            logits, canvas = (
                self.semantic(features),
                torch.stack(
                    [self.canvas(m, s, features) for m, s in zip(mined, batch, strict=True)]
                ),
            )
            total["semantic"] = semantic_loss(logits, canvas)  # eq. (10)
        loss = torch.stack(list(total.values())).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def mining(self, features: Tensor, proposals: list[Proposals]) -> list[Detection]:
        """Run the panoptic mining branch (section 3.2) on the proposals of each image of a batch of features (N,D,H,W)."""
        how, stride = self.hparams["pooling"], self.backbone.stride
        if how in ("roi_pool", "roi_align"):
            pooled = pool(features, [p.boxes for p in proposals], stride, how=how)
        else:
            pooled = pool_segments(features, proposals, stride, how, self.hparams["compensation"])
        objectness = torch.cat([p.scores for p in proposals])
        return self.detector(pooled, [p.boxes for p in proposals], objectness)

    def mining_losses(self, heads: Detection, sample: Sample) -> tuple[dict[str, Tensor], Mined]:
        """Things and stuff share the two streams; refinement heads go on with things. The last one chooses the foreground."""
        tags, proposals, size = (
            sample["target"]["tags"],
            sample["proposals"],
            sample["image"].shape[-2:],
        )
        things, prior = (
            heads._replace(mil=heads.mil[:, : len(tags)]),
            proposals.scores ** self.hparams["objectness_power"],
        )
        learnt = refine(
            things,
            tags,
            proposals.boxes,
            (size[0], size[1]),
            prior,
            self.hparams["background_weight"],
        )  # eqs. (3), (4)
        stuff_tags = sample["target"].get("stuff_tags", tags[:0])[: heads.mil.shape[1] - len(tags)]
        known = torch.cat([tags, stuff_tags])
        losses = {
            "mil": self.hparams["image_weight"] * image_loss(heads.mil[:, : len(known)], known)
        }  # eq. (2)
        losses |= {"refinement": learnt.refinement, "box": learnt.box}
        found = foreground(
            proposals.boxes, learnt.pseudo, learnt.matched, self.hparams["max_mask_samples"]
        )
        labels = (
            stuff_tags.nonzero().flatten()
            if len(proposals.boxes)
            else stuff_tags.new_zeros(0).long()
        )
        best = heads.mil.detach()[:, len(tags) + labels]
        order = best.amax(0).argsort() if len(labels) else labels
        top = best.argmax(0)[order] if len(labels) else labels
        return losses, Mined(found, learnt.pseudo.proposals[found.pseudo], labels[order], top)

    def instance_loss(self, features: Tensor, mined: Sequence[Mined], batch: Batch) -> Tensor:
        """Each instance head learns the masks of the one before it, the first one those that were mined, eq. (9)."""
        target = torch.cat([self.instance_masks(m, s) for m, s in zip(mined, batch, strict=True)])
        labels = torch.cat([m.things.labels for m in mined])
        regions = pool(
            features, [m.things.boxes for m in mined], self.backbone.stride, 14, "roi_align"
        )
        loss = features.new_zeros(())
        for head in self.masks:
            logits = of_class(head(regions)[0], labels)
            loss = loss + mask_loss(logits, target)
            target = (logits.detach() > 0).to(logits.dtype)
        return loss

    def instance_masks(self, mined: Mined, sample: Sample) -> Tensor:
        """M-hat^IS (K,28,28): the best segment of each thing, re-estimated around the seeds nearest to it (section 3.4)."""
        found, proposals = mined.things, sample["proposals"]
        if not self.hparams["reestimate"]:
            return _segments(proposals, mined.best, found.boxes, (28, 28)).to(found.boxes.dtype)
        seeds = nearest_seeds(found, self.hparams["seeds_per_class"])
        windows, evidence = self.reestimate(sample, mined.best[seeds], found.boxes[seeds])
        nearest = box_iou(found.boxes, found.boxes[seeds]).argmax(1) if len(seeds) else seeds
        masks = resample(
            windows, evidence, nearest, sample["view"].to_original(found.boxes), 28
        ).round()
        return masks.flip(-1) if sample["view"].flip else masks

    def canvas(self, mined: Mined, sample: Sample, features: Tensor) -> Tensor:
        """M-hat^SS (H,W) int64: the best segment of each stuff class, re-estimated, those with higher scores on top."""
        height, width = features.shape[-2:]
        stride, count = self.backbone.stride, len(mined.stuff)
        whole = mined.things.boxes.new_tensor([[0, 0, width * stride, height * stride]]).expand(
            count, 4
        )
        if self.hparams["reestimate"]:
            boxes = sample["proposals"].boxes[mined.stuff_best]
            windows, evidence = self.reestimate(sample, mined.stuff_best, boxes)
            which, seen = (
                torch.arange(count, device=boxes.device),
                sample["view"].to_original(whole),
            )
            masks = resample(windows, evidence, which, seen, (height, width)) >= 0.5
            masks = masks.flip(-1) if sample["view"].flip else masks
        else:
            masks = _segments(sample["proposals"], mined.stuff_best, whole, (height, width))
        canvas = torch.full((height, width), NO_STUFF, device=features.device)
        for label, mask in zip(mined.stuff.tolist(), masks, strict=True):
            canvas[mask] = label
        return canvas

    def reestimate(self, sample: Sample, segments: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """GrabCut in boxes (B,4) with pixels of segments (B,) sure: windows (B,4) in the original image, masks (B,m,m)."""
        sure = _segments(sample["proposals"], segments, boxes, (SIZE, SIZE))
        sure = sure.flip(-1) if sample["view"].flip else sure
        image = partial(read_image, sample["path"], sample["size"])
        ((windows, masks),) = self.evidence(
            [Request(sample["image_id"], image, sample["view"].to_original(boxes), sure)]
        )
        return windows.to(boxes.device), masks.to(boxes.device)

    def predict(self, sample: Sample) -> Prediction:
        """Average scores and boxes of the proposals over views, suppress, segment, and merge with stuff."""
        proposals, size = sample["proposals"], size_of(sample["image"])
        views = list(image_views(sample["image"], self.inference))
        features = [self.backbone([view.image]) for view in views]
        heads = [
            self.mining(feature, [proposals_in(view, proposals)])[0]
            for feature, view in zip(features, views, strict=True)
        ]
        scores, boxes = average(heads, views, proposals.boxes, size)
        objectness = proposals.scores[:, None] ** self.hparams["objectness_power"]
        things = scores[:, : self.hparams["num_classes"]] * objectness
        boxes, scores, labels, index = detect(things, boxes, self.inference.nms)
        if self.masks:
            logits = partial(self.mask_logits, labels=labels)
            probabilities = mean_masks(features, views, boxes, self.backbone.stride, logits)
            masks = paste(probabilities, boxes, size)
        else:
            masks = segment_masks(proposals, index)
        found = boxes.cpu(), scores.cpu(), labels.cpu(), masks
        prediction = Prediction(sample["image_id"], size, *found)
        if not self.hparams["stuff"]:
            return prediction
        stuff = self.stuff_map(features, views, heads, proposals, size)
        classes, threshold, area = (
            self.hparams[name] for name in ("num_classes", "score_threshold", "min_stuff_area")
        )
        merged = merge(prediction, stuff, classes, threshold, stuff_area=area)
        return prediction._replace(panoptic=merged)

    def mask_logits(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Return the last instance head's masks (N,28,28) of regions (N,D,14,14), each in the channel of its class."""
        return of_class(self.masks[-1](regions)[0], labels)

    def stuff_map(
        self,
        features: list[Tensor],
        views: list[ImageView],
        heads: list[Detection],
        proposals: Proposals,
        size: tuple[int, int],
    ) -> Tensor:
        """Return each pixel's stuff class (H,W): the semantic branch's, or that of the best proposal on the pixel."""
        if self.semantic is None:
            mil = torch.stack([h.mil for h in heads]).mean(0)
            return paint(proposals, mil[:, self.hparams["num_classes"] :])
        maps = [
            self.semantic.over(feature, view, self.backbone.stride, size)
            for feature, view in zip(features, views, strict=True)
        ]
        return torch.stack(maps).mean(0).argmax(0)

    def configure_optimizers(self) -> Any:
        """Optimise as `optimisation` says."""
        return optimise(self, self.optimisation)


class Mined(NamedTuple):
    """What the mining branch finds in one image, for the segmentation branches to learn."""

    things: Foreground
    best: Tensor
    """(K,) int64, the proposal that is the pseudo-label of each foreground proposal."""
    stuff: Tensor
    """(G,) int64, the stuff classes of the image in ascending order of score."""
    stuff_best: Tensor
    """(G,) int64, the best proposal of each."""


class SemanticHead(nn.Sequential):
    """Two 3 x 3 convolutions and a prediction of stuff, on the features of the whole image (section 3.4)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        layers = (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        super().__init__(*layers, nn.Conv2d(width, classes, 1))

    def over(self, features: Tensor, view: ImageView, stride: int, size: tuple[int, int]) -> Tensor:
        """Probabilities (S,H,W) over the image of `size` that `view` is of."""
        height, width = view.image.shape[-2:]
        probabilities = self(features).softmax(1)
        padded = enlarge(probabilities, stride, (height, width))
        seen = padded.flip(-1) if view.view.flip else padded
        return F.interpolate(seen, size=size, mode="bilinear")[0]


def _segments(proposals: Proposals, which: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Segments (B,) seen through boxes (B,4): (B,h,w) bool."""
    labels, members = segments_of(proposals)
    return segment_windows(labels, members[which], boxes, size)
