"""What PDSL's settings may be, and which have no effect beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsis.errors import InputError
from wsis.values import COUNT, NOT_NEGATIVE, WHOLE

RANGES = {
    COUNT: ("seeds_per_class", "max_mask_samples"),
    WHOLE: ("refinements", "mask_heads", "roi_samples"),
    NOT_NEGATIVE: (
        "correlation_weight",
        "image_weight",
        "objectness_power",
        "background_weight",
        "context",
    ),
}


def check_context(context: float, evidence: str) -> None:
    """Raise InputError for a ring inside its region, or with evidence that needs a grid."""
    if 0 < context <= 1:
        raise InputError(
            f"model.context {context}: give a number above 1, so that the ring lies around the "
            "region, or 0"
        )
    if evidence == "detector" and context:
        raise InputError(
            "evidence detector needs regions pooled to a grid, and context leaves their mean; "
            "set model.context 0 or another model.evidence"
        )


def idle(settings: Mapping[str, Any], frozen: bool) -> dict[str, str]:
    """Return the settings without effect, each with the reason.

    Args:
        settings: PDSL's.
        frozen: whether no part of the backbone is trained.
    """
    found: dict[str, str] = {}
    names: tuple[str, ...]
    if settings["context"]:
        found |= dict.fromkeys(("pooling", "widths.hidden", "widths.features"), "with context")
    if not settings["refinements"]:
        found |= dict.fromkeys(("regression", "background_weight"), "with refinements 0")
    if not settings["mask_heads"]:
        found["mask_target"] = "with mask_heads 0"
    if not settings["correlation_weight"]:
        names = ("correlation_target", "correlation_gradient")
        found |= dict.fromkeys(names, "with correlation_weight 0")
    if settings["evidence_masks"]:
        found["evidence"] = "with evidence_masks"
    if settings["mask_source"] == "pixels" and frozen:
        names = ("mask_heads", "mask_target", "correlation_weight")
        found |= dict.fromkeys(names, "with mask_source pixels and a frozen backbone")
    return found
