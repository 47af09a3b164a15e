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
from wsis.method import Method, Stages
from wsis.nn.backbone import Backbone
from wsis.nn.detection import (
    Detection,
    Detector,
    Foreground,
    average,
    foreground,
    nearest_seeds,
    refine,
)
from wsis.nn.masks import MaskHeads, of_class, paste, segment_masks, segments_of
from wsis.nn.mil import Trunk, detect
from wsis.nn.optimisation import Optimiser, optimise
from wsis.nn.panoptic import merge, paint
from wsis.nn.regions import Look, Pooling, enlarge, looks, pool, pool_segments, see
from wsis.ops import segment_windows
from wsis.ops.moi_pool import Compensation
from wsis.parts.classifier import pretrain
from wsis.types import RLE, Batch, Prediction, Proposals, Sample

__all__ = ["JTSM"]


class JTSM(Method):
    """Mine things and stuff together, from tags.

    Args:
        num_classes: number of thing classes, C; taken from the data.
        num_stuff: number of stuff classes, S; taken from the data.
        stuff: whether stuff is mined; without it things alone are detected and segmented.
        instances: whether the instance branch refines masks; else they are the mined segments.
        semantics: whether the semantic branch refines stuff; else it is painted from mined segments.
        reestimate: whether mined segments are re-estimated with GrabCut before they teach.
        backbone: network that makes the features: a timm name, or resnet18_ws_v2, 50, 101.
        weights: where the backbone starts from: "imagenet", "none" (random) or a file.
        output_stride: input pixels per feature cell, 8 or 16; 32 leaves the network's own.
        stage: which feature map of the backbone is used; -1 is the last.
        freeze: backbone stages kept fixed, 0 (none) to 5 (all, as the authors).
        backbone_args: further arguments of the backbone: model_args, mean, std.
        pretraining: `steps` and settings of a classifier that first trains the backbone.
        pooling: moi_pool (shape-invariant), moi_pool_interpolated, roi_pool or roi_align.
        compensation: factor of MoIPool for empty bins: bins, released or null, eq. (7).
        refinements: number of refinement heads, n^r in eq. (4).
        regression: whether refinement heads regress boxes.
        mask_heads: instance heads, each taught by the one before; the last one predicts.
        seeds: proposals per thing that get bottom-up evidence.
        image_weight: weight of the image loss, a mean.
        prior: power of objectness on scores where things are chosen; the paper has 0.
        background: weight of background where refinement heads learn; 1 in the paper.
        hidden: width of the first layer; 4096 for ResNet18-WS, 2048 for the deeper ones.
        features: width of the second fully connected layer.
        mask_width: channels of the instance and semantic branches.
        foreground: most proposals of an image that train masks; the paper uses all matched.
        optimiser: the paper's SGD with momentum 0.9, or AdamW for short schedules.
        lr: learning rate; biases learn twice as fast.
        warmup: fraction of the schedule over which the rate rises; the paper has none.
        weight_decay: of the weights; biases have none.
        decay_at: fractions of the schedule at which the rate falls to a tenth.
        test_sides: short sides in pixels to average predictions over; empty takes the image's.
        test_flip: whether predictions are averaged with the mirror image's.
        nms: box IoU above which the lower-scored of two detections of a class is dropped.
        least_score: of an instance in the panoptic map.
        stuff_area: fewest pixels of a stuff class in the panoptic map.
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
        backbone: str = "resnet18_ws_v2",
        weights: str = "imagenet",
        output_stride: int = 8,
        stage: int = -1,
        freeze: int = 5,
        backbone_args: dict[str, Any] | None = None,
        pretraining: dict[str, Any] | None = None,
        pooling: Pooling | Literal["moi_pool", "moi_pool_interpolated"] = "moi_pool",
        compensation: Compensation = "bins",
        refinements: int = 4,
        regression: bool = True,
        mask_heads: int = 2,
        seeds: int = 10,
        image_weight: float = 1.0,
        prior: float = 0.0,
        background: float = 1.0,
        hidden: int = 4096,
        features: int = 4096,
        mask_width: int = 256,
        foreground: int = 512,
        optimiser: Optimiser = "sgd",
        lr: float = 0.01,
        warmup: float = 0.0,
        weight_decay: float = 5e-4,
        decay_at: tuple[float, ...] = (0.7,),
        test_sides: tuple[int, ...] = (480, 576, 672, 768, 864, 960, 1056, 1152),
        test_flip: bool = True,
        nms: float = 0.3,
        least_score: float = 0.5,
        stuff_area: int = 4096,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if stuff and not num_stuff:
            raise InputError(
                "these data know no stuff classes; mine things alone: --model.stuff false (COCO: --data.panoptic true)"
            )
        self.panoptic = stuff
        self.backbone = Backbone(
            backbone, weights, output_stride, stage, freeze, **(backbone_args or {})
        )
        channels, classes = self.backbone.channels, num_classes + num_stuff * stuff
        trunk = Trunk(channels * 49, hidden, features)
        self.detector = Detector(trunk, features, classes, refinements, regression, num_classes)
        self.masks = nn.ModuleList(
            MaskHeads(channels, [num_classes], mask_width) for _ in range(mask_heads * instances)
        )
        self.semantic = (
            SemanticHead(channels, num_stuff, mask_width) if stuff and semantics else None
        )
        self.evidence = Evidence()

    def stages(self, run: Stages, data: pl.LightningDataModule) -> None:
        """Train a classifier first where the backbone starts from nothing, then JTSM."""
        if self.hparams["pretraining"]:
            self.backbone.load(pretrain(run, self.hparams, data))
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
            proposals.scores ** self.hparams["prior"],
        )
        learnt = refine(
            things, tags, proposals.boxes, (size[0], size[1]), prior, self.hparams["background"]
        )  # eqs. (3), (4)
        stuff_tags = sample["target"].get("stuff_tags", tags[:0])[: heads.mil.shape[1] - len(tags)]
        known = torch.cat([tags, stuff_tags])
        losses = {
            "mil": self.hparams["image_weight"] * image_loss(heads.mil[:, : len(known)], known)
        }  # eq. (2)
        losses |= {"refinement": learnt.refinement, "box": learnt.box}
        found = foreground(
            proposals.boxes, learnt.pseudo, learnt.matched, self.hparams["foreground"]
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
        seeds = nearest_seeds(found, self.hparams["seeds"])
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
        """Average scores and boxes of each proposal over the views, suppress, segment, and merge with stuff."""
        proposals, size = (
            sample["proposals"],
            (sample["image"].shape[-2], sample["image"].shape[-1]),
        )
        views = list(
            looks(sample["image"], self.hparams["test_sides"], flip=self.hparams["test_flip"])
        )
        features = [self.backbone([look.image]) for look in views]
        heads = [
            self.mining(f, [see(proposals, look)])[0]
            for f, look in zip(features, views, strict=True)
        ]
        scores, boxes = average(heads, [look.view.flip for look in views], proposals.boxes, size)
        prior = proposals.scores[:, None] ** self.hparams["prior"]
        things = scores[:, : self.hparams["num_classes"]]
        at, kept, labels, index = detect(things * prior, boxes, self.hparams["nms"])
        masks = (
            self._masks(features, views, at, labels, size)
            if self.masks
            else segment_masks(proposals, index)
        )
        found = Prediction(sample["image_id"], size, at.cpu(), kept.cpu(), labels.cpu(), masks)
        if not self.hparams["stuff"]:
            return found
        stuff = self._stuff(features, views, heads, proposals, size)
        classes, least, area = (
            self.hparams[name] for name in ("num_classes", "least_score", "stuff_area")
        )
        return found._replace(panoptic=merge(found, stuff, classes, least, stuff_area=area))

    def _masks(
        self,
        features: list[Tensor],
        views: list[Look],
        boxes: Tensor,
        labels: Tensor,
        size: tuple[int, int],
    ) -> list[RLE]:
        """Masks of the last instance head, the mean over the views."""
        masks = []
        for feature, look in zip(features, views, strict=True):
            regions = pool(
                feature, [look.view.to_input(boxes)], self.backbone.stride, 14, "roi_align"
            )
            logits = of_class(self.masks[-1](regions)[0], labels)
            masks.append((logits.flip(-1) if look.view.flip else logits).sigmoid())
        return paste(torch.stack(masks).mean(0), boxes, size)

    def _stuff(
        self,
        features: list[Tensor],
        views: list[Look],
        heads: list[Detection],
        proposals: Proposals,
        size: tuple[int, int],
    ) -> Tensor:
        """The stuff class (H,W) of each pixel: the semantic branch's, or that of the best proposal the pixel belongs to."""
        if self.semantic is None:
            return paint(
                proposals,
                torch.stack([h.mil for h in heads]).mean(0)[:, self.hparams["num_classes"] :],
            )
        maps = [
            self.semantic.over(f, look, self.backbone.stride, size)
            for f, look in zip(features, views, strict=True)
        ]
        return torch.stack(maps).mean(0).argmax(0)

    def configure_optimizers(self) -> Any:
        """As `optimise`, by the settings."""
        return optimise(self)


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

    def over(self, features: Tensor, look: Look, stride: int, size: tuple[int, int]) -> Tensor:
        """Probabilities (S,H,W) over the image of `size` that `look` is a view of."""
        height, width = look.image.shape[-2:]
        probabilities = self(features).softmax(1)
        padded = enlarge(probabilities, stride, (height, width))
        seen = padded.flip(-1) if look.view.flip else padded
        return F.interpolate(seen, size=size, mode="bilinear")[0]


def _segments(proposals: Proposals, which: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Segments (B,) seen through boxes (B,4): (B,h,w) bool."""
    labels, members = segments_of(proposals)
    return segment_windows(labels, members[which], boxes, size)
