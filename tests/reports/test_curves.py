"""Training curves: what is read, and charts that stay small."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from wsis.errors import InputError
from wsis.reports.curves import Curve, chart, read_curves


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)


def test_charts_escape_names_and_are_thinned():
    evil = "<script>alert('x')</script>"
    text = chart(Curve(evil, [(float(s), float(s % 3)) for s in range(5000)]))
    page = Elements()
    page.feed(text)
    assert "script" not in page.seen
    assert page.seen.count("polyline") == 1
    assert 100 < text.count(",") <= 200  # points


def test_a_chart_has_its_extent_and_last_value():
    text = chart(Curve("loss", [(0, 3.0), (10, 1.0), (20, 2.0)]))
    assert "<b>2</b>" in text
    assert "1 to 3" in text
    assert "step 0 to 20" in text
    assert 'points="0.0,0.0 150.0,120.0 300.0,60.0"' in text


def test_what_is_always_zero_has_no_curve(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.csv").write_text("step,box,late,same\n0,0,0,2\n1,0,0,2\n2,0,1,2\n")
    assert [curve.name for curve in read_curves(tmp_path)] == ["train: late", "train: same"]


def test_curves_leave_out_what_is_no_number(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.csv").write_text(
        "step,loss,val/AP\n0,3,\n1,nan,0.1\n2,1,\n3,oops,0.2\n"
    )
    curves = {curve.name: curve.points for curve in read_curves(tmp_path)}
    assert curves == {"train: loss": [(0, 3), (2, 1)], "train: val/AP": [(1, 0.1), (3, 0.2)]}


def test_a_damaged_file_is_named_and_cells_too_many_are_left_out(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.csv").write_text("step,loss\n0,1,7,8\n1\n2,3\n")
    assert read_curves(tmp_path) == [Curve("train: loss", [(0, 1), (2, 3)])]
    (tmp_path / "train/metrics.csv").write_bytes(b"step,loss\n0,\xff\n")
    with pytest.raises(InputError, match=r"train/metrics\.csv is damaged .*; delete it"):
        read_curves(tmp_path)
