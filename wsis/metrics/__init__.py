"""Metrics of detections, panoptic maps and proposals, and the callback that evaluates a model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "VOCAP",
    "CorLoc",
    "Evaluation",
    "InstanceAP",
    "MaskIoU",
    "PanopticQuality",
    "ProposalRecall",
]

if TYPE_CHECKING:
    from wsis.metrics.evaluation import Evaluation
    from wsis.metrics.instances import VOCAP, CorLoc, InstanceAP, MaskIoU
    from wsis.metrics.panoptic import PanopticQuality
    from wsis.metrics.proposals import ProposalRecall

_MODULES = {
    "Evaluation": "evaluation",
    "PanopticQuality": "panoptic",
    "ProposalRecall": "proposals",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'instances')}"), name)
