"""Write a trained network for other programs: `python -m wsis.export RUN model.onnx`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import wsis
from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.errors import InputError
from wsis.files import check_writable
from wsis.graphs.class_maps import ClassMaps
from wsis.graphs.mask_rcnn import MaskRCNNGraph
from wsis.graphs.mask_transformer import MaskTransformerGraph
from wsis.graphs.padding import with_fixed_padding
from wsis.graphs.write import check_packages, write_onnx, write_program
from wsis.inference import load
from wsis.method import Method
from wsis.models.boxinst import BoxInst
from wsis.models.cam import CAM
from wsis.models.mixed import Mixed
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.parts.mask_transformer import MaskTransformer
from wsis.runs.checkpoints import Which
from wsis.values import FRACTION, check_ranges

__all__ = ["export", "graph_of", "main"]

_GRAPHS: dict[type, Callable[[Any, float], Any]] = {
    MaskRCNN: MaskRCNNGraph,
    BoxInst: lambda model, score: MaskRCNNGraph(model.network, score),
    Mixed: lambda model, score: MaskRCNNGraph(model.network, score),
    MaskTransformer: MaskTransformerGraph,
    CAM: lambda model, _: ClassMaps(model),
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Export the run that `argv` names; return the file."""
    with plain_errors():
        parser = ArgumentParser(
            prog="python -m wsis.export",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_argument(
            "run", type=str, help="Folder of a finished run; or a shared model, as for predict."
        )
        parser.add_argument("to", type=Path, help="File to write: .onnx, or .pt2 for torch.export.")
        parser.add_function_arguments(export, skip={"run", "to"})
        return export(**parse(parser, argv))


def export(
    run: str,
    to: Path,
    stage: str | None = None,
    checkpoint: Which = "last",
    score: float | None = None,
) -> Path:
    """Write the network of a run with all that is done to its images, for programs without wsis.

    Its input `image` is (3,height,width) uint8 RGB of any size. Its outputs are `boxes` (N,4) x1,
    y1, x2, y2 and `masks` (N,height,width) bool in pixels of that image, `scores` (N,) and `labels`
    (N,); the metadata has the `names` that labels count from 0. Of CAM, whose objects are chosen
    among proposals, it is the classifier: `probabilities` (C,) and `maps` (C,height,width).

    Args:
        run: Folder of a finished run; or a shared model, as for predict.
        to: File to write: .onnx, or .pt2 for torch.export.
        stage: Trained stage to export; the last if not given.
        checkpoint: Of the stage: last, or best, that of the best validation if there were several.
        score: Lowest score of an object; if not given, that of the best F1 in the run's validation,
            from which on wsis.predict draws objects.

    Raises:
        InputError: not a finished run, a method whose network needs more than an image, packages
            that are missing, or a file that cannot be written.
    """
    check_ranges("export", {"score": score}, {FRACTION: ("score",)})
    check_packages(to)
    model, _, _, threshold = load(run, stage, checkpoint)
    lowest = threshold if score is None else score
    network = graph_of(model, lowest)
    check_writable(to)
    facts = {
        "names": json.dumps(model.class_names),
        "method": type(model).__name__,
        "threshold": str(threshold),
        "score": str(lowest),
        "wsis": wsis.__version__,
    }
    try:
        (write_onnx if to.suffix == ".onnx" else write_program)(network, facts, to)
    except InputError:
        raise
    except Exception as error:  # the exporter and what it calls raise many kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{type(model).__name__} with its backbone cannot be exported: {reason}; try one with "
            "another backbone"
        ) from error
    print(f"{to}: image -> {', '.join(network.outputs)}; metadata: {', '.join(facts)}")
    return to


def graph_of(model: Method, score: float) -> Any:
    """Return a trained model as a network from an image to its objects of at least a score.

    Raises:
        InputError: the model needs more than an image, or is of an unknown kind.
    """
    make, name = _GRAPHS.get(type(model)), type(model).__name__
    if make is not None:
        return make(with_fixed_padding(model), score).eval()
    if model.needs_boxes:
        raise InputError(
            f"{name} segments what given boxes hold and finds nothing by itself; leave out --stage "
            "to export the segmentor trained on its masks"
        )
    if model.needs_proposals:
        raise InputError(
            f"{name} chooses among proposals, which no exported network makes; write its labels "
            "with wsis.label, train --model mask_rcnn on them, and export that"
        )
    known = ", ".join(kind.__name__ for kind in _GRAPHS)
    raise InputError(f"{name} is not known to wsis.export, which has {known}; share its run")


if __name__ == "__main__":
    main()
