"""A simulated annotator, who knows the truth: what is labelled, and how many seconds it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from wsis.serve.labels import Label, LabelledObject, Refusal
from wsis.serve.order import SECONDS, Seconds
from wsis.serve.suggestions import SAME, Suggestion, inside_of, iou

__all__ = ["Answer", "Way", "annotate"]

Way = Literal["tag", "point", "box"]


class Answer(NamedTuple):
    """What an annotator says of an image."""

    label: Label
    seconds: float


def annotate(
    truth: Sequence[Suggestion],
    suggested: Sequence[Suggestion],
    classes: Sequence[str],
    way: Way = "box",
    seconds: Seconds = SECONDS,
) -> Answer:
    """Label an image as the page lets one do it.

    All tags are given. Unless they are all that is asked for, each suggestion is accepted if it is
    an object of its class that has none yet, by an IoU of `SAME`, else refused; and what is missed
    gets a box, or a point in its middle.

    Args:
        truth: all objects of the image.
        suggested: what a model found, best first.
        classes: names of all classes.
        way: how objects are labelled.
        seconds: what parts of a label cost.
    """
    present = {thing["name"] for thing in truth}
    tags = [name for name in classes if name in present]
    if way == "tag":
        label: Label = {"done": True, "tags": tags, "objects": [], "refused": []}
        return Answer(label, len(classes) * seconds.tag)
    objects: list[LabelledObject] = []
    refused: list[Refusal] = []
    missed = list(truth)
    for suggestion in suggested:
        same = next((thing for thing in missed if _is_same(suggestion, thing)), None)
        if same is None:
            refused.append({"name": suggestion["name"], "point": inside_of(suggestion)})
        else:
            missed.remove(same)
            objects.append(_accepted(suggestion))
    objects += [_drawn(thing, way) for thing in missed]
    spent = len(classes) * seconds.tag + len(suggested) * seconds.answer
    spent += len(missed) * (seconds.box if way == "box" else seconds.point)
    return Answer({"done": True, "tags": tags, "objects": objects, "refused": refused}, spent)


def _is_same(suggestion: Suggestion, thing: Suggestion) -> bool:
    return suggestion["name"] == thing["name"] and iou(suggestion, thing) >= SAME


def _accepted(suggestion: Suggestion) -> LabelledObject:
    thing: LabelledObject = {"name": suggestion["name"], "bbox": suggestion["bbox"]}
    mask = suggestion["segmentation"]
    return {**thing, "segmentation": mask} if mask else thing  # type: ignore[typeddict-item]


def _drawn(thing: Suggestion, way: Way) -> LabelledObject:
    if way == "box":
        return {"name": thing["name"], "bbox": thing["bbox"]}
    return {"name": thing["name"], "points": [[*inside_of(thing), 1]]}
