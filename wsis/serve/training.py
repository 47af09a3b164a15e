"""Retraining from the page: `wsis.fit` on the labels so far, then `wsis.predict` on all images."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, NamedTuple

from wsis import registry
from wsis.command_line.settings import read_run
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.reports.table import METRICS
from wsis.runs.jobs import Job, start
from wsis.runs.progress import percents, unnumbered
from wsis.runs.record import stages
from wsis.serve.store import Store
from wsis.serve.suggestions import Found, deepest, predictions_folder, read_found
from wsis.types import Record

__all__ = ["Recipe", "Training", "with_points"]

State = Literal["idle", "running", "finished", "stopped", "failed"]
TAIL = 4000
"""Bytes at the end of a log that are read for its last line."""


class Recipe(NamedTuple):
    """How to train."""

    model: str
    """Name of the method; with a run, that of the run."""
    words: tuple[str, ...] = ()
    """More settings of `wsis.fit`."""
    accelerator: str = "auto"


class Training:
    """Runs of a folder of images, one at a time, and what the newest finished one found.

    Args:
        root: folder of the images.
        recipe: how to train.
        run: finished run to begin with.
        runs: folder for new runs and for the labels that they learn from.
    """

    def __init__(
        self, root: Path, recipe: Recipe, run: Path | None = None, runs: Path = Path("runs")
    ) -> None:
        self.root, self.recipe, self.run, self.runs = root, recipe, run, runs
        self.found: Found | None = read_found(run, root) if run else None
        self._place = run
        self._state: State = "idle"
        self._error = ""
        self._thread: Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def start(self, store: Store) -> None:
        """Train on the labels so far, in a process of its own.

        An object with a mask, such as one that was accepted, gets a point, for methods that learn
        from points.

        A run is called by its labels: with the same ones, what was interrupted goes on, and stages
        that do not depend on what has changed are copied from earlier runs.

        Raises:
            InputError: a training is running, no image is done, or labels cannot be written.
        """
        if not store.done:
            raise InputError("no image is done yet; say of some what is in them")
        content = with_points(store.snapshot())
        digest = hashlib.sha256(content).hexdigest()[:12]
        labels = self.runs / "serve" / f"labels-{digest}.json"
        with atomic_write(labels) as scratch:
            scratch.write_bytes(content)
        place = self.runs / self._model() / "folder" / f"serve-{digest}"
        self._begin(place, [self._fit(labels, place), self._predict(place)])

    def predict(self) -> None:
        """Predict all images with the run that there is, unless that is done."""
        if self.run is not None and self.found is None:
            self._begin(self.run, [self._predict(self.run)])

    def stop(self) -> None:
        """Interrupt what runs; a training goes on from there when it is started again."""
        with self._lock:
            if self._state == "running":
                self._state = "stopped"
                if self._process is not None:
                    self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Wait until nothing runs."""
        if self._thread is not None:
            self._thread.join()

    def state(self) -> Record:
        """Return how far it is: the stages of the run, and the last line that it printed."""
        place = self._place
        return {
            "state": self._state,
            "line": self._error or ("" if place is None else _last_line(_log(place))),
            "run": str(place or ""),
            "stages": [] if place is None else _stage_lines(place),
            "suggests": str(self.found.run) if self.found else "",
        }

    def _model(self) -> str:
        if self.run is None:
            return self.recipe.model
        return registry.short_name("model", str(read_run(self.run)["model"]["class_path"]))

    def _fit(self, labels: Path, place: Path) -> Job:
        settings = ["--model", self.recipe.model]
        if self.run is not None:
            settings = ["--config", str(self.run / "config.yaml")]
        data = ["--data", "folder", "--data.root", os.path.abspath(self.root)]
        data += ["--data.labels", os.path.abspath(labels)]
        where = ["--run_dir", str(place), "--reuse", str(self.runs)]
        how = ["--trainer.accelerator", self.recipe.accelerator]
        return Job("training", (*settings, *self.recipe.words, *data, *where, *how), _log(place))

    def _predict(self, run: Path) -> Job:
        out = ["--out", str(predictions_folder(run)), "--formats", "[]"]
        how = ["--accelerator", self.recipe.accelerator]
        words = ("--run", str(run), *out, *how, os.path.abspath(self.root))
        return Job("predicting", words, _log(run), verb="predict")

    def _begin(self, place: Path, jobs: Sequence[Job]) -> None:
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise InputError("a training is running; wait for it, or stop it")
            self._place, self._state, self._error = place, "running", ""
            # processes end with the thread that starts them, so not that of a request
            self._thread = Thread(target=self._work, args=(place, jobs), daemon=True)
            self._thread.start()

    def _work(self, place: Path, jobs: Sequence[Job]) -> None:
        try:
            state = self._run_all(place, jobs)
            if state == "finished":
                self.found = read_found(place, self.root)
                self.run = place
        except (InputError, OSError) as error:
            state, self._error = "failed", str(error)
        with self._lock:
            self._process, self._state = None, state

    def _run_all(self, place: Path, jobs: Sequence[Job]) -> State:
        """Run jobs one after another, until one fails or all is stopped."""
        results = predictions_folder(place) / "images.json"
        for job in jobs:
            if job.verb == "predict":
                results.unlink(missing_ok=True)
            with self._lock:
                if self._is_stopped():
                    return "stopped"
                self._process = start(job, {})
            failed = self._process.wait() != 0
            if self._is_stopped():
                return "stopped"
            if failed and not (job.verb == "predict" and results.is_file()):  # of some images only
                return "failed"
        return "finished"

    def _is_stopped(self) -> bool:
        return self._state == "stopped"


def with_points(labels: bytes) -> bytes:
    """Return COCO instances in which each object with a mask and without points has one."""
    content = json.loads(labels)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        mask = annotation.get("segmentation")
        if mask and not annotation.get("points"):
            annotation["points"] = [[*deepest(mask, sizes[annotation["image_id"]]), 1]]
    return json.dumps(content).encode()


def _log(run: Path) -> Path:
    return run / "serve.log"


def _last_line(log: Path) -> str:
    """Return the last line of a log; empty if there is none yet."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")


def _stage_lines(run: Path) -> list[Record]:
    """Return name, state and metrics of the stages that have begun."""
    names = [f"{split}/{name}" for split in ("val", "train") for name in METRICS]
    return [
        {
            "name": unnumbered(folder.name),
            "finished": stage.finished,
            "metrics": percents(stage.metrics, names),
        }
        for folder, stage in stages(run)
    ]
