"""The record of a stage is read as it was written, or refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from wsis.errors import InputError
from wsis.runs.record import StageRecord, read_stage, stages, write_stage

DONE = StageRecord(
    2,
    "f00d",
    {"model": "a.B", "hparams": {"width": 3}},
    True,
    9,
    {"val/AP": 0.5},
    1.5,
    10,
    "cpu",
    "c",
    {"step": 4, "val/AP": 0.6},
)


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert read_stage(tmp_path / "train") is None
    for record in (DONE, StageRecord(1, "beef")):
        write_stage(tmp_path / "train", record)
        assert read_stage(tmp_path / "train") == record
    assert DONE.model == "a.B"
    assert StageRecord(1, "beef").model == ""


def test_stages_are_in_order(tmp_path):
    for name, number in (("a", 10), ("b", 2), ("c", 1)):
        write_stage(tmp_path / name, StageRecord(number, "0"))
    assert [folder.name for folder, _ in stages(tmp_path)] == ["c", "b", "a"]


@pytest.mark.parametrize(
    "content",
    [
        '{"number": 1, "fing',
        "[]",
        "null",
        '{"finished": true}',
        json.dumps({"number": 1, "fingerprint": "0", "finished": "yes"}),
        json.dumps({"number": 1, "fingerprint": "0", "metrics": None}),
        json.dumps({"number": 1, "fingerprint": "0", "colour": "red"}),
    ],
)
def test_a_damaged_or_foreign_record_is_one_line(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(InputError, match=r"stage\.json is damaged; delete .* again") as error:
        read_stage(tmp_path)
    assert "\n" not in str(error.value)


def test_done_means_finished_with_as_many_steps():
    assert DONE.is_done("f00d", 9)
    assert DONE.is_done("f00d", -1), "epochs count"
    assert DONE.is_done("f00d", None)
    assert not DONE.is_done("f00d", 10)
    assert not DONE.is_done("beef", 9)
    assert not replace(DONE, finished=False).is_done("f00d", 9)
