"""What BoxCaseg's settings may be, and which have no effect beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, WHOLE

RANGES = {
    COUNT: ("width", "crop", "proxy_crop"),
    WHOLE: ("salient_limit",),
    POSITIVE: ("lr",),
    NOT_NEGATIVE: ("smoothness", "shift", "backbone_lr", "weight_decay"),
    FRACTION: (
        "alpha",
        "salient_fraction",
        "upside_down",
        "scale",
        "crowded",
        "min_agreement",
        "warmup",
    ),
}


def idle(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings without effect, each with the reason."""
    heads, found = {*settings["heads"]}, {}
    if not {"salient", "transferred"} <= heads:
        found["alpha"] = "without the heads salient and transferred"
    if "weak" not in heads:
        found["smoothness"] = "without the head weak"
    if not settings["salient_fraction"]:
        names = ("salient", "salient_limit", "salient_crop")
        found |= dict.fromkeys(names, "with salient_fraction 0")
    return found
