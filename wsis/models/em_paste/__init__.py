"""EM-Paste: masks from tags by pasting what classes have in common on other images (under review at TMLR).

A classifier's maps point to one segment of each image and tagged class; the mean look of a class's segments then chooses
again, for a few rounds of expectation and maximisation. The chosen segments are cut out and pasted, several at a time, on
training images as those are loaded: of these objects every visible pixel is known. They train Mask R-CNN.

    symbol      name            shape
    phi(O)      features        (m,D)       the classifier's features of an image's segments, each on grey
    c           cam_centroid    (A,2)       centre of the highest cells of the tagged classes' maps
    n           candidates                  segments nearest to c, of which the classifier chooses the first
    k           keep                        share of a class's images that make the next mean
    n_p         objects                     foregrounds pasted on an image
    I_o         backgrounds                 images that are pasted on

Where we follow the released code instead of the text, and why:

    distance    cosine to the mean, as the figure has it, too; the text's Mahalanobis is a setting, its covariance shrunk
    segments    1 to 80 % of the image may be a first choice
    scale       foregrounds are pasted at 0.3 to 1 of their own size, turned by up to 30 degrees
    small       foregrounds with a box under 700 pixels are not pasted

Where we differ from both:

    centre      the mean features of all segments are subtracted: cosine of what is never negative tells little, and EM ran to
                what all images have, such as grass (mean IoU of 477 choices on COCO: the first 15.4 %, after two rounds 19.4 %,
                not centred 8.8 %, and 4.6 % where rounds choose among all segments)
    rounds      choose among segments that may be a first choice, which can be limited to those of high scores, `object_like`:
                the paper's segments do not overlap, ours are hundreds of wholes and parts
    map         that of the tagged class; the code takes the class of the highest score, which loses the others of an image
    phi         the classifier's last features, pooled; the code has a second network for them
    images      keep their size; the code stretches them to 512 x 512 and writes them to disk

Where the paper is silent, what is known of the real objects in a training image is handled by `own`. Captions and generated
backgrounds are made beforehand: give their folder as `backgrounds`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from wsis.evidence.em import Distance
from wsis.method import Method, Stages
from wsis.models.em_paste.foregrounds import write_foregrounds, write_segments
from wsis.parts.classifier import pretrain
from wsis.pasting.compose import Blend, Where
from wsis.pasting.paster import Own, Paste
from wsis.runs.stage import Stage

__all__ = ["EMPaste"]


class EMPaste(Method):
    """Learn instance masks from tags by pasting foregrounds.

    Args:
        num_classes: number of thing classes; taken from the data.
        backbone: network of the classifier and, unless its settings say otherwise, Mask R-CNN: a timm name.
        weights: where both start from: "imagenet", "none" (random) or a weights file.
        output_stride: stride of the classifier's map, 8 or 16 by dilation; 32 leaves the network's own.
        backbone_args: further arguments of the backbone: model_args, mean, std.
        cam_share: share of a class map's cells, the highest, whose centre the first choice is near.
        object_like: share of the segments of 1 to 80 % of an image, those of high scores, that may be chosen.
        candidates: segments nearest to that centre, of which the classifier chooses.
        patch: side in pixels at which a segment is shown to the classifier.
        rounds: of expectation and maximisation; 0 takes the first choices.
        keep: share of a class's images whose choices make the next mean.
        distance: to the mean: "cosine" or "mahalanobis".
        centre: whether the mean of all segments is subtracted from features; not so in the authors' code.
        every_segment: whether rounds may choose segments of any size, as in the authors' code.
        least_probability: foregrounds that the classifier is less sure of are dropped.
        objects: how many foregrounds are pasted on an image: a number, or the fewest and the most.
        select: "uniform" pastes every foreground as often, "balanced" every class, for long tails.
        where: "random" pastes anywhere, "space" where most room is left.
        blend: edges of pasted objects: "gaussian", "poisson" or "none".
        scale: least and largest factor on a foreground's own size.
        rotation: largest turn of a foreground either way, in degrees.
        least_area: foregrounds whose box has fewer square pixels are not pasted.
        backgrounds: "none" pastes on training images alone, "black" on black ones, too, a folder on its pictures.
        share: of the images that have such a background; the paper has 10,000 in 31,000.
        own: what an image's own foregrounds are: "annotate" objects like pasted ones, "nothing" background;
            "ignore" has what lies in them or in high class maps teach nothing.
        pretraining: `steps` and settings of the classifier.
        segmentor: `steps` and settings of Mask R-CNN.
    """

    def __init__(
        self,
        num_classes: int = 20,
        backbone: str = "resnet50",
        weights: str = "imagenet",
        output_stride: int = 32,
        backbone_args: dict[str, Any] | None = None,
        cam_share: float = 0.2,
        object_like: float = 1.0,
        candidates: int = 3,
        patch: int = 224,
        rounds: int = 2,
        keep: float = 0.5,
        distance: Distance = "cosine",
        centre: bool = True,
        every_segment: bool = False,
        least_probability: float = 0.1,
        objects: int | tuple[int, int] = 4,
        select: Literal["uniform", "balanced"] = "uniform",
        where: Where = "random",
        blend: Blend = "gaussian",
        scale: tuple[float, float] = (0.3, 1.0),
        rotation: float = 30.0,
        least_area: float = 700.0,
        backgrounds: str = "none",
        share: float = 0.33,
        own: Own = "annotate",
        pretraining: dict[str, Any] | None = None,
        segmentor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def stages(self, run: Stages, data: Any) -> None:
        """Train a classifier, choose foregrounds by EM, and train Mask R-CNN on images they are pasted on."""
        self.paste(
            Path()
        ).pictures()  # what is wrong with settings is told before anything is trained
        shared = {
            name: self.hparams[name]
            for name in ("num_classes", "backbone", "weights", "backbone_args")
        }
        skip = self.hparams["own"] == "ignore"
        segmentor = Stage.of(
            "segmentor", self.hparams["segmentor"] or {}, "mask_rcnn", skip_crowds=skip, **shared
        )
        classifier = pretrain(run, self.hparams, data)
        how = {
            name: self.hparams[name] for name in ("object_like", "candidates", "cam_share", "patch")
        }
        segments = run.make(
            "2-segments", partial(write_segments, checkpoint=classifier, data=data, **how), **how
        )
        how = {
            name: self.hparams[name]
            for name in (
                "rounds",
                "keep",
                "distance",
                "centre",
                "every_segment",
                "least_probability",
            )
        }
        found = run.make(
            "3-foregrounds", partial(write_foregrounds, segments=segments, data=data, **how), **how
        )
        segmentor.train(
            run, "4-segmentor", data.variant(found / "labels.json", paste=self.paste(found))
        )

    def paste(self, foregrounds: Path) -> Paste:
        """How foregrounds are pasted, by the settings."""
        objects: int | tuple[int, int] = self.hparams["objects"]
        fewest, most = (objects, objects) if isinstance(objects, int) else objects
        names = (
            "select",
            "where",
            "blend",
            "scale",
            "rotation",
            "least_area",
            "backgrounds",
            "share",
            "own",
        )
        return Paste(foregrounds, (fewest, most), **{name: self.hparams[name] for name in names})
