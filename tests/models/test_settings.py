"""Settings of every method that cannot work, or have no effect beside others."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from wsis import registry
from wsis.data.transforms import Augment
from wsis.errors import InputError
from wsis.method import Method

BACKBONE = {
    "name": "test_byobnet",
    "weights": "none",
    "output_stride": 32,
    "frozen_stages": 0,
}
REFUSED = {
    "boxcaseg": [
        *({"alpha": 1.5}, {"smoothness": -1}, {"salient_fraction": 2}, {"salient_limit": -3}),
        *({"upside_down": 3}, {"crop": 0}, {"proxy_crop": -96}, {"shift": -1}, {"scale": 3}),
        *({"crowded": 2}, {"min_agreement": 2}, {"lr": 0}, {"backbone_lr": -1}, {"warmup": 2}),
        *({"weight_decay": -1}, {"width": 0}, {"heads": ()}),
    ],
    "boxinst": [
        *({"pairwise_weight": -1}, {"pairwise_warmup": 5}, {"threshold": 2}, {"dilation": 0}),
        *({"network": {"foo": 1}}, {"network": {"features": "x"}}, {"network": {"backbone": {}}}),
        *({"optimisation": {"lr": 0}}, {"optimisation": {"decay_at": [1.5]}}),
        *({"optimisation": {"warmup": 2}}, {"optimisation": {"weight_decay": "x"}}),
    ],
    "cam": [
        *({"lr": -1}, {"threshold": 0}, {"nms": 2}, {"test_side": -1}, {"test_max_side": 0}),
    ],
    "ccgr": [
        *({"rounds": 0}, {"bag_size": 0}, {"penalty": -1}, {"min_peak": 2}, {"peak_window": 2}),
        *({"peak_smoothing": 0}, {"scales": ()}, {"scales": (0.0,)}, {"walk_steps": -1}),
        *({"background_score": 2}, {"label_side": -1}, {"refinement": -1}, {"context": 1}),
        {"score_threshold": 2},
    ],
    "classifier": [{"lr": 0}, {"warmup": 1}, {"sharpness": 0}, {"weight_decay": -1}],
    "em_paste": [
        *({"cam_fraction": 0}, {"object_like": 2}, {"candidates": 0}, {"patch_size": 0}),
        *({"rounds": -1}, {"keep": 0}, {"min_probability": 2}, {"objects": -1}),
        *({"scale": (0, 1)}, {"rotation": 400}, {"min_area": -1}, {"background_fraction": 2}),
    ],
    "jtsm": [
        *({"roi_samples": -1}, {"refinements": -1}, {"mask_heads": 0}, {"seeds_per_class": 0}),
        *({"image_weight": -1}, {"objectness_power": -1}, {"background_weight": -1}),
        *({"widths": {"mask": 0}}, {"max_mask_samples": 0}, {"score_threshold": 2}),
        *({"min_stuff_area": -1}, {"inference": {"short_sides": [0]}}, {"inference": {"nms": 2}}),
    ],
    "mask_rcnn": [
        *({"features": 0}, {"hidden": 0}, {"mask_width": 0}, {"anchor_size": 0}, {"nms": 2}),
        *({"anchors_per_image": 0}, {"max_proposals": 1}, {"regions_per_image": 3}),
        *({"test_side": -1}, {"score_threshold": 2}, {"max_detections": 0}),
        *({"backbone": {"std": (0, 0, 0)}}, {"backbone": {"mean": (123, 116, 103)}}),
        {"backbone": {"frozen_stages": 6}},
    ],
    "mask_transformer": [
        *({"features": 0}, {"queries": 0}, {"blocks": 0}, {"heads": 0}, {"points": 0}),
        *({"no_object": -1}, {"score_threshold": 2}, {"max_detections": 0}),
    ],
    "pdsl": [
        *({"mask_heads": -1}, {"correlation_weight": -1}, {"roi_samples": -2}, {"context": 0.5}),
        *({"refinements": -1}, {"seeds_per_class": 0}, {"max_mask_samples": -4}),
        {"widths": {"features": -1}},
    ],
    "point_mil": [
        *({"refinements": 0}, {"roi_samples": -1}, {"max_mask_samples": 0}),
        *({"objectness_power": -1}, {"background_weight": -1}, {"widths": {"mask": 0}}),
    ],
}
"""Settings that no method can work with, one or two of each."""
WITHOUT_EFFECT = {
    "boxcaseg": [({"heads": ("weak",)}, "alpha"), ({"heads": ("salient",)}, "smoothness")],
    "boxinst": [({"pairwise_weight": 0}, "threshold")],
    "ccgr": [
        *(({"rounds": 1}, "carry"), ({"rounds": 1}, "score_threshold")),
        *(({"refinement": 0}, "form"), ({}, "backbone.frozen_stages")),
    ],
    "classifier": [({"pooling": "max"}, "sharpness")],
    "em_paste": [
        *(({"rounds": 0}, "distance"), ({"backgrounds": "none"}, "background_fraction")),
        *(({"where": "space"}, "scale"), ({"objects": 0}, "blend"), ({}, "backbone.stored")),
    ],
    "jtsm": [
        *(({"stuff": False}, "min_stuff_area"), ({"semantics": False}, "things_class")),
        *(({"instances": False}, "mask_heads"), ({"mask_heads": 1}, "mask_target")),
        *(({"reestimate": "none"}, "evidence"), ({"pooling": "roi_pool"}, "window")),
        *(({"refinements": 0}, "regression"), ({"stuff": False, "instances": False}, "evidence")),
    ],
    "pdsl": [
        *(({"context": 1.8}, "pooling"), ({"context": 1.8}, "widths.hidden")),
        *(({"refinements": 0}, "regression"), ({"mask_heads": 0}, "mask_target")),
        *(({"correlation_weight": 0}, "correlation_target"), ({"evidence_masks": "x"}, "evidence")),
        ({"mask_source": "pixels", "backbone": {"frozen_stages": 5}}, "mask_heads"),
    ],
}
"""Settings, and another that has no effect beside them."""


def small(name: str, **more) -> Method:
    """Make a method on a small network."""
    cls = registry.find("model", name)
    known = inspect.signature(cls).parameters
    backbone = BACKBONE | more.pop("backbone", {})
    widths = {"widths": {"hidden": 8, "features": 8, "mask": 4}} if "widths" in known else {}
    return cls(**widths | {"num_classes": 3, "backbone": backbone} | more)


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name, cases in REFUSED.items() for settings in cases],
    ids=str,
)
def test_settings_that_cannot_work_are_one_line(name, settings):
    with pytest.raises(InputError) as error:
        small(name, **settings)
    assert "\n" not in str(error.value)
    last = next(reversed(settings))
    inner = settings[last] if isinstance(settings[last], dict) else {last: None}
    assert next(iter(inner)) in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings", "idle"),
    [(name, *case) for name, cases in WITHOUT_EFFECT.items() for case in cases],
    ids=str,
)
def test_settings_without_effect_are_known(name, settings, idle):
    assert idle in small(name, **settings).idle()
    assert {key.split(".")[0] for key in small(name).idle()} <= {
        *inspect.signature(registry.find("model", name)).parameters
    }


def stored(**more) -> dict:
    """Settings of a stage that keeps the features of a frozen network."""
    return {"steps": 1, "backbone": {**BACKBONE, "frozen_stages": 5, "stored": True}, **more}


PLAIN = {"steps": 1, "backbone": BACKBONE}
LATER = [
    ("boxcaseg", "segmentor", {}),
    ("ccgr", "affinity", {"detector": PLAIN, "segmentation": {"steps": 1}, "segmentor": PLAIN}),
    ("ccgr", "detector", {"affinity": PLAIN, "segmentation": {"steps": 1}, "segmentor": PLAIN}),
    ("em_paste", "segmentor", {}),
]
"""Methods, their later stages, and what else these need."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting", "others"), LATER)
@pytest.mark.parametrize("own", [{}, {"augment": {"jitter": 1.5}}], ids=["data", "own"])
def test_kept_features_of_varied_images_are_refused_before_the_first_stage(
    name, setting, others, own
):
    """`None` has no stages to begin."""
    augment = Augment() if own else Augment(jitter=1.5)
    model = small(name, **{setting: stored(**own)}, **others)
    told = rf"model\.{setting}: backbone\.stored needs .* --model\.{setting}\.augment\.jitter 1"
    with pytest.raises(InputError, match=told):
        model.stages(None, SimpleNamespace(augment=augment))
