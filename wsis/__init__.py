"""Weakly supervised instance segmentation: seven methods, from tags and boxes to masks.

`wsis.PDSL` and every other model and data set, `wsis.Method`, `wsis.load(RUN)` and
`wsis.predict(model, image)` are imported when first used: `import wsis` alone loads neither torch
nor a method.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsis.datasets.coco import COCO
    from wsis.datasets.folder import Folder
    from wsis.datasets.shapes import Shapes
    from wsis.datasets.voc import VOC
    from wsis.inference import load
    from wsis.method import Method
    from wsis.models.boxcaseg import BoxCaseg
    from wsis.models.cam import CAM
    from wsis.models.ccgr import CCGR
    from wsis.models.em_paste import EMPaste
    from wsis.models.jtsm import JTSM
    from wsis.models.pdsl import PDSL
    from wsis.parts.classifier import Classifier
    from wsis.parts.mask_rcnn import MaskRCNN

__version__ = "0.1.0"
__all__ = [
    "CAM",
    "CCGR",
    "COCO",
    "JTSM",
    "PDSL",
    "VOC",
    "BoxCaseg",
    "Classifier",
    "EMPaste",
    "Folder",
    "MaskRCNN",
    "Method",
    "Shapes",
    "load",
    "predict",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name == "load":
        return importlib.import_module("wsis.inference").load
    if name == "Method":
        return importlib.import_module("wsis.method").Method
    if name == "predict":
        return importlib.import_module("wsis.predict")
    if name[0].isupper():  # a submodule's name must not come this far: `registry` is one
        registry = importlib.import_module("wsis.registry")
        if (kind := registry.exports().get(name)) is not None:
            return registry.find(kind, name)
    raise AttributeError(f"module 'wsis' has no attribute '{name}'")


def __dir__() -> list[str]:
    registry = importlib.import_module("wsis.registry")
    return sorted({"__version__", *__all__, *registry.exports()})


class _Verb(ModuleType):
    """A verb's module that is also the function: `wsis.predict(model, image)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("wsis.inference").predict(*args, **kwargs)


class _Package(ModuleType):
    """This package; importing `wsis.predict` passes by here, whoever does it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "predict" and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
