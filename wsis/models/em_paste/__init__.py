"""EM-Paste: masks from tags by pasting typical segments of a class on images (submitted to TMLR).

A classifier's maps select one segment for each image and tagged class; the mean features of a
class's segments then select again, for a few rounds of expectation and maximisation. The chosen
segments are cut out and pasted, several at a time, on training images as these are loaded; every
visible pixel of a pasted object is known. The images train Mask R-CNN.

    symbol      name            shape
    phi(O)      features        (m,D)       the classifier's features of an image's segments, each
                                            on grey
    c           cam_centroid    (A,2)       centre of the highest cells of the tagged classes' maps
    n           candidates                  segments nearest to c, of which the most probable is the
                                            first choice
    k           keep                        fraction of a class's images that make the next mean
    n_p         objects                     foregrounds pasted on an image
    I_o         backgrounds                 images that are pasted on

Where we follow the released code instead of the text, and why:

    distance    cosine to the mean, as in the figure, too; the text's Mahalanobis distance is a
                setting, with a shrunk covariance
    segments    1 to 80 % of the image may be a first choice
    scale       foregrounds are pasted at 0.3 to 1 of their size, rotated by up to 30 degrees
    small       foregrounds with a box under 700 pixels are not pasted
    colours     brightness by 0.9 to 1.1 and contrast by 0.5 to 1.5, each in half of the images (in
                the recipes; the text has no ranges)

Where we differ from both:

    centre      the mean features of all segments are subtracted: the cosine of features that are
                never negative discriminates little, and EM drifts to segments common to all images,
                such as grass (mean IoU of 477 choices on COCO: first choices 15.4 %; after two
                rounds 19.4 %, uncentred 8.8 %, and 4.6 % if rounds choose among all segments)
    rounds      choose among segments that may be a first choice, optionally those of high scores
                (`object_like`): the paper's segments do not overlap, ours are hundreds of wholes
                and parts
    map         of the tagged class; the code takes the class of the highest score, which loses the
                other classes of an image
    phi         the classifier's last features, pooled; the code has a second network for them
    images      keep their size; the code stretches them to 512 x 512 and writes them to disk

The paper does not say how real objects in a training image are treated: see `own`. Captions and
generated backgrounds are made beforehand by `wsis.generate`; give their folder as `backgrounds`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from wsis.evidence.em import Distance
from wsis.method import Method, Stages, filled
from wsis.models.em_paste.foregrounds import write_foregrounds
from wsis.models.em_paste.segments import write_segments
from wsis.nn.backbone import SET_FOR_EACH, BackboneSettings
from wsis.parts.classifier import pretrain
from wsis.pasting.compose import Blend, Where
from wsis.pasting.paster import Own, Paste, Paster
from wsis.runs.stage import Stage
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, PART, POSITIVE, WHOLE, Range, Ranges

__all__ = ["EMPaste"]

SEGMENTS = ("object_like", "candidates", "cam_fraction", "patch_size")
"""Settings that the stage of segments depends on."""
FOREGROUNDS = ("rounds", "keep", "distance", "centre", "every_segment", "min_probability")
"""Settings that the choice of foregrounds depends on."""
_BACKBONE = BackboneSettings("resnet50", output_stride=32)


class EMPaste(Method):
    """Learn instance masks from tags by pasting foregrounds.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network under the classifier and, unless its settings name another, the
            segmentor; `feature_level` and `frozen_stages` are set for each of them.
        cam_fraction: Fraction of a class map's cells, the highest, that make the map's centre.
        object_like: Fraction of the segments of 1 to 80 % of an image, those of the highest scores,
            that may be chosen.
        candidates: Number of segments nearest to that centre, of which the most probable is the
            first choice.
        patch_size: Side in pixels at which a segment is shown to the classifier.
        rounds: Number of rounds of expectation and maximisation; 0 takes the first choices.
        keep: Fraction of a class's images whose choices make the next mean.
        distance: Distance of features to the mean.
        centre: Whether to subtract the mean of all segments from features, unlike the authors'
            code.
        every_segment: Whether rounds may choose segments of any size, as in the authors' code.
        min_probability: Lowest class probability of a foreground.
        objects: Number of foregrounds pasted on an image: a number, or the smallest and largest.
        select: Sampling of foregrounds: "uniform" over foregrounds, or "balanced" over classes, for
            long tails.
        where: Place of a pasted object: "random", or "space" where most room is left.
        blend: Blending of the edges of pasted objects; of several, each object draws one, the
            text's "any combination".
        scale: Smallest and largest factor on a foreground's size.
        rotation: Largest rotation of a foreground in either direction, in degrees.
        min_area: Smallest area in square pixels of the box of a foreground.
        backgrounds: Images to paste on in place of a `background_fraction` of the training images:
            "none", "black", or a folder of pictures.
        background_fraction: Fraction of training images whose background is replaced; 10,000 of
            31,000 in the paper.
        own: How to treat the image's own objects: "annotate" trains on them like pasted ones,
            "ignore" excludes their pixels and high class activations from the loss, "nothing"
            treats them as background.
        pretraining: Settings of the classifier, with its `steps`.
        segmentor: Settings of the segmentor that is trained last, with its `steps` and, if not
            mask_rcnn, its `model`.
    """

    ranges: ClassVar[Ranges] = {
        COUNT: ("candidates", "patch_size"),
        WHOLE: ("rounds", "objects"),
        PART: ("cam_fraction", "object_like", "keep"),
        FRACTION: ("min_probability", "background_fraction"),
        POSITIVE: ("scale",),
        NOT_NEGATIVE: ("min_area",),
        Range(0, 180): ("rotation",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        cam_fraction: float = 0.2,
        object_like: float = 1.0,
        candidates: int = 3,
        patch_size: int = 224,
        rounds: int = 2,
        keep: float = 0.5,
        distance: Distance = "cosine",
        centre: bool = True,
        every_segment: bool = False,
        min_probability: float = 0.1,
        objects: int | tuple[int, int] = 4,
        select: Literal["uniform", "balanced"] = "uniform",
        where: Where = "random",
        blend: Blend | tuple[Blend, ...] = "gaussian",
        scale: tuple[float, float] = (0.3, 1.0),
        rotation: float = 30.0,
        min_area: float = 700.0,
        backgrounds: str = "none",
        background_fraction: float = 0.33,
        own: Own = "annotate",
        pretraining: dict[str, Any] | None = None,
        segmentor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        found = dict(SET_FOR_EACH)
        names: tuple[str, ...]
        if not self.hparams["rounds"]:
            names = ("keep", "distance", "centre", "every_segment")
            found |= dict.fromkeys(names, "with rounds 0")
        if self.hparams["backgrounds"] == "none":
            found["background_fraction"] = "with backgrounds none"
        if self.hparams["where"] == "space":
            found["scale"] = "with where space"
        if not self.hparams["objects"]:
            names = ("select", "where", "blend", "scale", "rotation", "min_area")
            found |= dict.fromkeys(names, "with objects 0")
        return found

    def stages(self, run: Stages, data: Any) -> None:
        """Train a classifier, choose foregrounds by EM, and train the segmentor on pasted ones."""
        self.paste(Path()).pictures()  # reports wrong settings before training
        shared = {
            "num_classes": self.hparams["num_classes"],
            "backbone": self.settings.shared(),
            "ignore_crowds": self.hparams["own"] == "ignore",
        }
        segmentor = Stage.of("segmentor", self.hparams["segmentor"] or {}, "mask_rcnn", **shared)
        segmentor.check(data)
        classifier = pretrain(run, self, self.settings, data)
        settings = {name: self.hparams[name] for name in SEGMENTS}
        produce = partial(write_segments, checkpoint=classifier, data=data, **settings)
        segments = run.make("2-segments", produce, **settings)
        settings = {name: self.hparams[name] for name in FOREGROUNDS}
        chosen = partial(write_foregrounds, segments=segments, data=data, **settings)
        pool = run.make("3-foregrounds", chosen, **settings)
        paster = Paster(self.paste(pool), data.class_names)
        pasted = data.variant(pool / "labels.json", transform=paster)
        segmentor.train(run, "4-segmentor", pasted)

    def stage_names(self) -> list[str]:
        """Return the names of the stages."""
        return ["1-classifier", "2-segments", "3-foregrounds", "4-segmentor"]

    def paste(self, foregrounds: Path) -> Paste:
        """Return the settings of pasting.

        Args:
            foregrounds: folder of the pool of foregrounds.
        """
        objects: int | tuple[int, int] = self.hparams["objects"]
        fewest, most = (objects, objects) if isinstance(objects, int) else objects
        names = ("select", "where", "blend", "scale", "rotation", "backgrounds", "own")
        return Paste(
            foregrounds,
            (fewest, most),
            least_area=self.hparams["min_area"],
            share=self.hparams["background_fraction"],
            **{name: self.hparams[name] for name in names},
        )
