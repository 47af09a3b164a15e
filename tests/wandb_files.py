"""What W&B has written while it was offline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto.wandb_internal_pb2 import Record


class Logged(NamedTuple):
    """One offline run."""

    name: str
    group: str
    project: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    artifacts: list[Any]
    files: Path

    def series(self, key: str) -> list[Any]:
        return [step[key] for step in self.history if key in step]


def read_wandb(path: Path) -> Logged:
    """Read the .wandb file of a run that is over; W&B's own process may still be writing it."""
    records, until = [], time.monotonic() + 60
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < until, f"{path} has no end"
        records = [Record.FromString(record) for record in _records(path)]
        time.sleep(0.05)
    config, history, artifacts, run = {}, [], [], None
    for record in records:
        run = record.run if run is None and record.HasField("run") else run
        for item in [*record.config.update, *record.run.config.update]:
            _put(config, item)
        if record.HasField("history"):
            history.append({})
            for item in record.history.item:
                _put(history[-1], item)
        if record.HasField("artifact"):
            artifacts.append(record.artifact)
    return Logged(
        run.display_name,
        run.run_group,
        run.project,
        run.job_type,
        list(run.tags),
        config,
        history,
        artifacts,
        path.parent / "files",
    )


def _put(values: dict[str, Any], item: Any) -> None:
    *path, last = item.nested_key or [item.key]
    for key in path:
        values = values.setdefault(key, {})
    values[last] = json.loads(item.value_json)


def _records(path: Path) -> Iterator[bytes]:
    """Records of a LevelDB log behind seven bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no header fits into the rest of a block
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole = (whole if kind in (3, 4) else b"") + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
