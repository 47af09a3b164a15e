"""A network that a method trains in a separate stage, described by one of the method's settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wsis import registry
from wsis.data.targets import FIELDS
from wsis.data.transforms import Augment
from wsis.errors import InputError
from wsis.method import Method, Stages
from wsis.runs.checkpoints import load_weights
from wsis.runs.progress import say_idle
from wsis.values import COUNT, check_arguments, check_ranges

__all__ = ["Stage"]

PSEUDO_LABELS = frozenset({"tags", "boxes", "masks"})
"""Fields of the labels that a run makes for its later stages."""


class Stage(NamedTuple):
    """A network and its training settings, such as those of the segmentor that a method ends with.

    Built before the first stage of a run, so that a wrong setting is reported at once and not after
    hours.
    """

    model: Any
    """The network, a `Method`."""
    steps: int
    augment: Augment | None
    batch_size: int | None
    accumulate: int | None
    place: str
    """The setting that describes it, such as "model.segmentor"."""

    @classmethod
    def of(
        cls, setting: str, given: Mapping[str, Any], default: str | type[Method], **shared: Any
    ) -> Stage:
        """Build the network that a setting of a method describes.

        Args:
            setting: name of the setting, such as "segmentor".
            given: its value: `model`, the name of a network in place of the default; `steps`;
                `batch_size`, `accumulate` and `augment` if they differ from the data's and the
                trainer's; and arguments of the network.
            default: the network if `given` names none: a name as `--model` takes it, or a class.
            **shared: arguments that the method passes on if the network has them; `given` takes
                precedence.

        Raises:
            InputError: no network of that name, an unknown argument, one of the wrong type, no
                steps, or a network that does not learn from the labels of this stage.
        """
        settings, place = dict(given), f"model.{setting}"
        chosen = settings.pop("model", default)
        if not isinstance(chosen, str | type):
            raise InputError(f"{place}.model {chosen}: give the name of a network")
        network = registry.find("model", chosen) if isinstance(chosen, str) else chosen
        steps = settings.pop("steps", None)
        augment = _augment(settings.pop("augment", None), f"{place}.augment")
        batch_size = settings.pop("batch_size", None)
        accumulate = settings.pop("accumulate", None)
        if steps is None:
            raise InputError(
                f"{place} needs `steps`, how long {network.__name__} is trained, as in "
                "{steps: 1000}"
            )
        length = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}
        check_ranges(place, length, {COUNT: tuple(length)})
        check_arguments(network, place, settings)
        accepted = inspect.signature(network).parameters
        passed = {name: value for name, value in shared.items() if name in accepted}
        if "backbone" in passed:
            settings["backbone"] = _on_same(passed["backbone"], settings.get("backbone") or {})
        try:
            model = network(**(passed | settings))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        _check_labels(model, default, place)
        say_idle(place, settings, model.idle())
        return cls(model, steps, augment, batch_size, accumulate, place)

    def check(self, data: Any) -> None:
        """Raise InputError before the first stage if the network cannot be trained on these data.

        Args:
            data: the data module.
        """
        augment = self.augment or getattr(data, "augment", None)
        try:
            self.model.check_augment(augment, f"{self.place}.augment")
        except InputError as error:
            raise InputError(f"{self.place}: {error}") from error

    def train(
        self,
        run: Stages,
        name: str,
        data: Any,
        labels: Path | None = None,
        start: Path | None = None,
    ) -> Path:
        """Train as a stage of a run and return the checkpoint.

        The model has the trained weights afterwards, even if the stage was finished before.

        Args:
            run: the run.
            name: of the stage.
            data: the data module.
            labels: a COCO json whose annotations replace the data's own.
            start: checkpoint of an earlier stage of the same network, whose weights it begins with.
        """
        settings = self._trainer()
        if start:
            load_weights(self.model, start)
            settings["weights_of"] = start.parents[1].name
        checkpoint = run.fit(name, self.model, self._data(data, labels), **settings)
        load_weights(self.model, checkpoint)
        return checkpoint

    def work(self, run: Stages, data: Any) -> None:
        """Work on all stages of the network, as a run of that method would.

        The model has the trained weights afterwards.

        Args:
            run: the run.
            data: the data module.

        Raises:
            InputError: the network does not name its stages, so that the last one is not known.
        """
        names = self.model.stage_names()
        if not names:
            raise InputError(
                f"{self.place}: {type(self.model).__name__} does not name its stages; choose "
                "another network"
            )
        self.model.stages(run.with_trainer(**self._trainer()), self._data(data))
        load_weights(self.model, run.checkpoint(names[-1]))

    def _trainer(self) -> dict[str, Any]:
        settings = {"max_steps": self.steps}
        return settings | ({"accumulate_grad_batches": self.accumulate} if self.accumulate else {})

    def _data(self, data: Any, labels: Path | None = None) -> Any:
        if labels or self.augment or self.batch_size:
            return data.variant(labels, self.augment, self.batch_size)
        return data


def _augment(given: Mapping[str, Any] | None, place: str) -> Augment | None:
    """Return the augmentation that a stage has in place of the data's, if it has one."""
    if not given:
        return None
    check_arguments(Augment, place, given)
    augment = Augment(**given)
    say_idle(place, given, augment.idle())
    return augment


def _check_labels(model: Method, default: str | type[Method], place: str) -> None:
    """Raise InputError if a network cannot take the place of another one in a run's stage."""
    other = registry.find("model", default) if isinstance(default, str) else default
    needs = max(other.supervision, key=list(FIELDS).index)
    if needs not in model.supervision:
        raise InputError(
            f"{place}: {type(model).__name__} does not learn from {needs}; choose a network that "
            f"does, such as {other.__name__}"
        )
    if extra := sorted(model.supervision - PSEUDO_LABELS - other.supervision):
        raise InputError(
            f"{place}: {type(model).__name__} learns from {', '.join(extra)}, and the labels that "
            f"a run makes have {', '.join(sorted(PSEUDO_LABELS))} only; choose another network"
        )
    if other.predicts() and not model.predicts():
        raise InputError(f"{place}: {type(model).__name__} makes no predictions; choose another")


def _on_same(shared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone's settings: those given over those shared, if both name one network."""
    same = given.get("name", shared["name"]) == shared["name"]
    return {**(shared if same else {}), **given}
