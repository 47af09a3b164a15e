"""Weakly supervised instance segmentation: eleven methods, from tags, points and boxes to masks.

    run = wsis.fit("pdsl", "folder", data={"root": "photos"})  # train, as `python -m wsis.fit`
    model, data, *_ = wsis.load(run)
    found = wsis.predict(model, "image.jpg")

`wsis.build` makes a model and its data by their recipe. Methods, each a `wsis.Method`: `wsis.PDSL`,
`EMPaste`, `JTSM`, `CCGR`, `PointMIL`, `BoxCaseg`, `BoxInst`, `Mixed`, `CAM`, `MaskRCNN`,
`MaskTransformer`; data sets: `wsis.Folder`, `COCO`, `VOC`, `ImageNet`, `Shapes`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsis.command_line.build import build as build
    from wsis.datasets.coco import COCO as COCO
    from wsis.datasets.folder import Folder as Folder
    from wsis.datasets.imagenet import ImageNet as ImageNet
    from wsis.datasets.shapes import Shapes as Shapes
    from wsis.datasets.voc import VOC as VOC
    from wsis.fit import fit as fit
    from wsis.inference import load as load
    from wsis.inference import predict as predict
    from wsis.method import Method as Method
    from wsis.models.boxcaseg import BoxCaseg as BoxCaseg
    from wsis.models.boxinst import BoxInst as BoxInst
    from wsis.models.cam import CAM as CAM
    from wsis.models.ccgr import CCGR as CCGR
    from wsis.models.em_paste import EMPaste as EMPaste
    from wsis.models.jtsm import JTSM as JTSM
    from wsis.models.mixed import Mixed as Mixed
    from wsis.models.pdsl import PDSL as PDSL
    from wsis.models.point_mil import PointMIL as PointMIL
    from wsis.parts.classifier import Classifier as Classifier
    from wsis.parts.mask_rcnn import MaskRCNN as MaskRCNN
    from wsis.parts.mask_transformer import MaskTransformer as MaskTransformer
    from wsis.types import Prediction as Prediction

__version__ = "0.1.0"
__all__ = ["build", "fit", "load", "predict"]  # without the classes, or `help(wsis)` has no end

_HOMES = {
    "build": "wsis.command_line.build",
    "fit": "wsis.fit",
    "load": "wsis.inference",
    "predict": "wsis.inference",
    "Method": "wsis.method",
    "Prediction": "wsis.types",
}
"""Modules of what is no model and no data set."""
_VERBS = ("fit", "predict")
"""Functions whose name is also that of a module, which the command line runs."""


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import wsis` alone loads neither torch nor a method."""
    if name in _VERBS:
        return importlib.import_module(f"wsis.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name[0].isupper():  # a submodule's name must not come this far: `registry` is one
        registry = importlib.import_module("wsis.registry")
        if (kind := registry.exports().get(name)) is not None:
            return registry.find(kind, name)
    raise AttributeError(f"module 'wsis' has no attribute '{name}'")


def __dir__() -> list[str]:
    registry = importlib.import_module("wsis.registry")
    return sorted({"__version__", *_HOMES, *registry.exports()})


class _Verb(ModuleType):
    """A verb's module that is also the function: `wsis.predict(model, image)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.removeprefix("wsis.")
        return getattr(importlib.import_module(_HOMES[name]), name)(*args, **kwargs)


class _Package(ModuleType):
    """This package; importing `wsis.predict` passes by here, whoever does it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
