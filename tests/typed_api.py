"""What editors and type checkers see of the package; checked by mypy and not run."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from PIL.Image import Image

import wsis
from wsis.inference import Loaded

model, data, trainer = wsis.build("pdsl", "shapes", model={"refinements": 3})
assert_type(model, wsis.Method)
assert_type(trainer, dict[str, Any])
pdsl = wsis.PDSL(num_classes=3, refinements=3)
assert_type(pdsl, wsis.PDSL)
assert_type(pdsl.class_names, tuple[str, ...])
assert_type(wsis.Shapes().class_names, list[str])
pl.Trainer(**trainer).fit(pdsl, datamodule=data)

loaded = wsis.load(wsis.fit(wsis.CAM, wsis.Shapes, trainer={"max_steps": 300}))
assert_type(loaded, Loaded)
prediction = wsis.predict(loaded.model, "image.jpg")
assert_type(prediction, wsis.Prediction)
assert_type(wsis.predict(loaded.model, ["image.jpg"]), list[wsis.Prediction])
assert_type(prediction.names, list[str])
assert_type(prediction.binary_masks(), NDArray[np.bool_])
assert_type(prediction.plot("image.jpg", loaded.threshold), Image)
