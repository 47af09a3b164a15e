"""JTSM: joint thing-and-stuff mining for panoptic segmentation from tags (Shen et al., CVPR 2021).

Tags of things and stuff train a mining branch on segment proposals, whose features MoIPool takes
from their own pixels. The segments it finds are re-estimated with GrabCut and train an instance and
a semantic branch, whose masks are merged into a panoptic map.

    symbol         name              shape
    t              tags              (C + S,)      1 where the image holds the thing or stuff class
    Phi^f          features          (N,D,H,W)     of the backbone
    Phi^p          pooled            (P,D,7,7)     MoIPool, eqs. (5)-(8): `wsis.ops.moi_pool`
    S^MIL          mil               (P,C + S)     two-stream scores
    y              image scores      (C + S,)      sum of S^MIL over the proposals
    M^IS, M-hat    logits, target    (K,28,28)     instance masks of K matched proposals, eq. (9)
    M^SS, M-hat    logits, canvas    (S,H,W)       stuff, eq. (10); 255 where nothing is known
    n^r            refinements                     number of refinement heads

Where we follow the released code instead of the text, and why:

    eq. (2)     mean over classes with clamped scores; a sum would grow with the number of classes
    eq. (3)     softmax (the text lacks an exponential), divided by the number of weighted proposals
    n^r heads   things only: a box cannot tell stuff from the things on it, and boxes decide which
                proposals are positive; `refine_stuff` has the text's n^c + 1 classes
    seeds       ten proposals per thing get evidence, the others that of the nearest one; the text
                has one mask per class
    eq. (9)     mean over proposals and pixels, unweighted; a second head learns the first's masks
    eq. (10)    is exactly 0 for one stuff class, as on VOC: there is no branch then, and what is no
                thing is stuff, as with the code's dummy
    stuff       the best proposal by S^MIL, painted in ascending order of score
    regression  boxes are regressed; the text has none
    features    pooled features are multiplied by the proposal's objectness + 1 (in neither text)
    NMS         0.3; the text says 0.5
    test sides  eight; the text has five (480, 576, 688, 864, 1200), which the recipes take

As in PDSL, all seeds train masks, with others at random up to `max_mask_samples`, and deltas, not
boxes, are averaged over views.

Where we follow the text instead of the code:

    eq. (5)     the maximum over a bin's own cells, 0 where it has none; half-open bins
    eq. (7)     s^2 over non-empty bins; `compensation="released"` counts one more, so that a full
                rectangle has 49/50
    GrabCut     pixels of the mined segment are sure foreground, and stay so where it overshoots;
                `reestimate="box"` starts from the box alone, as the code

Where the paper is silent:

    eq. (5)     the window: the rounded box, as in the code, or the region's own cells (`window`).
                Only there does MoIPool of a rectangular segment equal RoIPool, as section 3.3 says
    GrabCut     of stuff: pixels of mined things are background; box and image often end together,
                and outside there is nothing to learn from
    n^r = 0     S^MIL sums to y, and hardly a proposal reaches the threshold of the panoptic map; in
                it, the best proposal of a class counts as y
    no branch   without the semantic branch, classes whose y is at least 0.5 are painted as in
                training: each with its best segment
    things      `things_class` is a class of the semantic branch for all things, as the released
                label maps of COCO have it; here mined segments teach it, and it is void in the map

`objectness_power`, `background_weight`, `image_weight` and AdamW with warm-up are as in PDSL, and
off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.losses import NO_STUFF, image_loss, mask_loss, mean_losses, semantic_loss
from wsis.method import Method, Stages, filled
from wsis.models.jtsm._pseudo_masks import (
    EvidenceSource,
    Mined,
    PseudoMasks,
    Reestimate,
    best_of_stuff,
    first_classes,
    things_of,
)
from wsis.models.jtsm._semantic import SemanticHead
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.detection import Detection, Detector, HeadWidths, mask_samples, refine
from wsis.nn.masks import (
    MaskHeads,
    MaskTarget,
    next_target,
    of_class,
    paste,
    segment_masks,
    segments_in,
)
from wsis.nn.mil import MLPHead, detect
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.panoptic import best_as_sum, merge, paint
from wsis.nn.regions import Pooling, Window, pool, pool_segments
from wsis.nn.views import ImageView, Inference, average, mean_masks, over_views
from wsis.ops.moi_pool import Compensation
from wsis.parts.classifier import pretrain
from wsis.types import Batch, Prediction, Proposals, Sample, size_of
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, WHOLE, Ranges

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
        semantics: Whether the semantic branch refines stuff; else the best segment of each class is
            painted.
        things_class: Whether the semantic branch also has a class for things.
        reestimate: What mined segments are before they train a branch: "none" for the segments
            themselves, or masks cut out again from the "box" alone or with the "segment" as sure
            foreground.
        evidence: What cuts masks out again: fast colour models, GrabCut as the authors run it, or
            the seeds' own segments.
        backbone: The network that computes features.
        pretraining: Settings of a classifier that first trains the backbone, with its `steps`; null
            trains none.
        pooling: How segments or boxes are pooled; the paper has moi_pool, shape-invariant.
        compensation: Factor of MoIPool for empty bins, eq. (7): bins, released or null.
        window: Where MoIPool has its bins: in the box of the segment, or around its own cells.
        roi_samples: Samples of RoIAlign per side of a bin; 0 takes one for each cell, as released.
        refinements: Number of refinement heads, n^r in eq. (4).
        refine_stuff: Whether refinement heads have stuff classes, too.
        regression: Whether refinement heads regress boxes.
        mask_target: What an instance head teaches the next one: its probabilities, as in PDSL's
            text, or those cut at 0.5, as in its code.
        mask_heads: Number of instance heads; each learns the masks of the one before, and the last
            one predicts.
        seeds_per_class: Number of proposals per thing whose first mask is bottom-up evidence.
        image_weight: Weight of the image loss, which is a mean.
        objectness_power: Power of objectness in the scores that select things; 0 in the paper.
        background_weight: Weight of background proposals in the refinement loss; 1 in the paper.
        widths: Widths of the heads; `mask` is also that of the semantic branch.
        max_mask_samples: Largest number of proposals of an image that train masks; the paper uses
            all matched ones.
        optimisation: How weights are optimised.
        inference: How images are predicted.
        score_threshold: Lowest score of an instance in the panoptic map.
        min_stuff_area: Fewest pixels of a stuff class in the panoptic map.
    """

    supervision = frozenset({"tags", "stuff_tags"})
    needs_segments = True
    ranges: ClassVar[Ranges] = {
        COUNT: ("mask_heads", "seeds_per_class", "max_mask_samples"),
        WHOLE: ("refinements", "roi_samples", "min_stuff_area"),
        NOT_NEGATIVE: ("image_weight", "objectness_power", "background_weight"),
        FRACTION: ("score_threshold",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        num_stuff: int = 1,
        stuff: bool = True,
        instances: bool = True,
        semantics: bool = True,
        things_class: bool = False,
        reestimate: Reestimate = "segment",
        evidence: EvidenceSource = "authors",
        mask_target: MaskTarget = "cut",
        backbone: BackboneSettings = _BACKBONE,
        pretraining: dict[str, Any] | None = None,
        pooling: Pooling | Literal["moi_pool", "moi_pool_interpolated"] = "moi_pool",
        compensation: Compensation = "bins",
        window: Window = "box",
        roi_samples: int = 0,
        refinements: int = 4,
        refine_stuff: bool = False,
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
                "these data know no stuff classes; mine things alone: --model.stuff false (COCO: "
                "--data.panoptic true)"
            )
        self.panoptic = stuff
        self.backbone = Backbone(backbone)
        channels, classes = self.backbone.channels, num_classes + num_stuff * stuff
        trunk = MLPHead(channels * 49, widths.hidden, widths.features)
        refined = classes if refine_stuff else num_classes
        self.detector = Detector(trunk, widths.features, classes, refinements, regression, refined)
        self.masks = nn.ModuleList(
            MaskHeads(channels, [num_classes], widths.mask) for _ in range(mask_heads * instances)
        )
        outputs = num_stuff + things_class if stuff and semantics else 0
        self.semantic = SemanticHead(channels, outputs, widths.mask) if outputs > 1 else None
        things_label = num_stuff if things_class else None
        self.pseudo_masks = PseudoMasks(reestimate, evidence, seeds_per_class, things_label)

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        given, found = self.hparams, dict[str, str]()
        names: tuple[str, ...]
        if not given["stuff"]:
            names = ("semantics", "refine_stuff", "score_threshold", "min_stuff_area")
            found |= dict.fromkeys(names, "with stuff false")
        if not (given["stuff"] and given["semantics"]):
            found["things_class"] = "without the semantic branch"
        if not given["instances"]:
            names = ("mask_heads", "mask_target", "seeds_per_class", "max_mask_samples")
            found |= dict.fromkeys(names, "with instances false")
            if not (given["stuff"] and given["semantics"]):
                found |= dict.fromkeys(("reestimate", "evidence"), "without a branch for masks")
        elif given["mask_heads"] == 1:
            found["mask_target"] = "with mask_heads 1"
        if given["reestimate"] == "none":
            found["evidence"] = "with reestimate none"
        if given["pooling"] != "moi_pool":
            found |= dict.fromkeys(("window", "compensation"), f"with pooling {given['pooling']}")
        if not given["refinements"]:
            names = ("regression", "background_weight", "refine_stuff")
            found |= dict.fromkeys(names, "with refinements 0")
        return found

    def stages(self, run: Stages, data: Any) -> None:
        """Train a classifier first if `pretraining` asks for one, then JTSM."""
        if self.hparams["pretraining"]:
            settings = self.backbone.settings
            self.backbone.load(pretrain(run, self, settings, data, self.backbone))
        run.fit(self.stage_names()[-1], self, data)

    def stage_names(self) -> list[str]:
        """Return the names of the stages."""
        return ["1-classifier", "2-jtsm"] if self.hparams["pretraining"] else ["train"]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_PM + L_IS + L_SS, eq. (1)."""
        features = self.backbone([sample["image"] for sample in batch])
        heads = self.mining(features, [sample["proposals"] for sample in batch])
        pairs = [self.mining_losses(h, s) for h, s in zip(heads, batch, strict=True)]
        total = mean_losses([losses for losses, _ in pairs])  # L_PM, eq. (4)
        mined = [found for _, found in pairs]
        if self.masks:
            total["instance"] = self.instance_loss(features, mined, batch)  # (9)
        if self.semantic is not None:
            make = partial(
                self.pseudo_masks.canvas, size=size_of(features), stride=self.backbone.stride
            )
            canvas = [make(m, s) for m, s in zip(mined, batch, strict=True)]
            total["semantic"] = semantic_loss(self.semantic(features), torch.stack(canvas))  # (10)
        loss = torch.stack(list(total.values())).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def mining(self, features: Tensor, proposals: list[Proposals]) -> list[Detection]:
        """Run the mining branch (section 3.2) on proposals, from features (N,D,H,W) of images."""
        pooling, stride = self.hparams["pooling"], self.backbone.stride
        boxes = [p.boxes for p in proposals]
        if pooling in ("roi_pool", "roi_align"):
            samples = self.hparams["roi_samples"]
            pooled = pool(features, boxes, stride, how=pooling, samples=samples)
        else:
            how = pooling, self.hparams["compensation"]
            window = self.hparams["window"]
            pooled = pool_segments(features, proposals, stride, *how, window=window)
        return self.detector(pooled, boxes, torch.cat([p.scores for p in proposals]))

    def mining_losses(self, heads: Detection, sample: Sample) -> tuple[dict[str, Tensor], Mined]:
        """Train both streams on things and stuff, and refinement heads on things; sample masks."""
        tags, proposals = sample["target"]["tags"], sample["proposals"]
        stuff_tags = sample["target"].get("stuff_tags", tags[:0])[: heads.mil.shape[1] - len(tags)]
        known = torch.cat([tags, stuff_tags])
        image = image_loss(heads.mil[:, : len(known)], known)  # eq. (2)
        objectness = proposals.scores ** self.hparams["objectness_power"]
        background, size = self.hparams["background_weight"], size_of(sample["image"])
        refined = known if self.hparams["refine_stuff"] else tags
        own = first_classes(heads, len(refined))
        learnt = refine(own, refined, proposals.boxes, size, objectness, background)  # (3), (4)
        image = self.hparams["image_weight"] * image
        losses = {"mil": image, "refinement": learnt.refinement, "box": learnt.box}
        pseudo, matched = things_of(learnt, proposals.boxes, len(tags))
        most, seeds = self.hparams["max_mask_samples"], self.hparams["seeds_per_class"]
        samples = mask_samples(proposals.boxes, pseudo, matched, most, seeds)
        scores = learnt.scores.detach() if self.hparams["refine_stuff"] else heads.mil.detach()
        stuff, best = best_of_stuff(scores[:, len(tags) : len(known)], stuff_tags)
        of_samples = pseudo.proposals[samples.pseudo]
        return losses, Mined(samples, of_samples, pseudo.proposals, stuff, best)

    def instance_loss(self, features: Tensor, mined: Sequence[Mined], batch: Batch) -> Tensor:
        """Train the first instance head on mined masks, each other on the one before, eq. (9)."""
        make = self.pseudo_masks.instances
        target = torch.cat([make(m, s) for m, s in zip(mined, batch, strict=True)])
        labels = torch.cat([m.things.labels for m in mined])
        boxes = [m.things.boxes for m in mined]
        stride, samples = self.backbone.stride, self.hparams["roi_samples"]
        regions = pool(features, boxes, stride, 14, "roi_align", samples)
        loss = features.new_zeros(())
        for head in self.masks:
            logits = of_class(head(regions)[0], labels)
            loss = loss + mask_loss(logits, target)
            target = next_target(logits, self.hparams["mask_target"])
        return loss

    def predict(self, sample: Sample) -> Prediction:
        """Average scores and boxes over views, suppress, segment, and merge with stuff."""
        proposals, size = sample["proposals"], size_of(sample["image"])
        views, features, heads = over_views(sample, self.inference, self.backbone, self.mining)
        scores, boxes = average(heads, views, proposals.boxes, size)
        objectness = proposals.scores[:, None] ** self.hparams["objectness_power"]
        things = scores[:, : self.hparams["num_classes"]] * objectness
        boxes, scores, labels, index = detect(things, boxes, self.inference.nms)
        if self.masks:
            logits = partial(self.mask_logits, labels=labels)
            stride, samples = self.backbone.stride, self.hparams["roi_samples"]
            probabilities = mean_masks(features, views, boxes, stride, logits, samples)
            masks = paste(probabilities, boxes, size)
        else:
            masks = segment_masks(proposals, index)
        found = boxes.cpu(), scores.cpu(), labels.cpu(), masks
        prediction = Prediction(sample["image_id"], size, *found)
        if not self.hparams["stuff"]:
            return prediction
        if not self.hparams["refinements"]:
            prediction = prediction._replace(scores=best_as_sum(prediction, things))
        stuff = self.stuff_map(features, views, heads, proposals, size)
        classes, area = self.hparams["num_classes"], self.hparams["min_stuff_area"]
        threshold = self.hparams["score_threshold"]
        merged = merge(prediction, stuff, classes, threshold, stuff_area=area)
        return Prediction(sample["image_id"], size, *found, merged)

    def mask_logits(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Return masks (N,28,28) of regions (N,D,14,14), in the channels of their classes."""
        return of_class(self.masks[-1](regions)[0], labels)

    def stuff_map(
        self,
        features: list[Tensor],
        views: list[ImageView],
        heads: list[Detection],
        proposals: Proposals,
        size: tuple[int, int],
    ) -> Tensor:
        """Return pixels' stuff classes (H,W), of the semantic branch or of the best proposals."""
        if self.semantic is not None:
            maps = [
                self.semantic.over(feature, view, self.backbone.stride, size)
                for feature, view in zip(features, views, strict=True)
            ]
            found = torch.stack(maps).mean(0).argmax(0)
            return found.where(found < self.hparams["num_stuff"], NO_STUFF)
        if self.hparams["semantics"]:  # one class: where no thing is
            return torch.zeros(size, dtype=torch.int64)
        things = self.hparams["num_classes"]
        mil = torch.stack([h.mil for h in heads]).mean(0)
        scores = torch.stack([h.scores() for h in heads]).mean(0)
        scores = scores if self.hparams["refine_stuff"] else mil
        labels, best = best_of_stuff(scores[:, things:], mil[:, things:].sum(0) >= 0.5)
        whole = proposals.boxes.new_tensor([0, 0, size[1], size[0]]).expand(len(best), 4)
        return paint(segments_in(proposals, best, whole, size), labels)

    def configure_optimizers(self) -> Any:
        """Optimise as `optimisation` says."""
        return optimise(self, self.optimisation)
