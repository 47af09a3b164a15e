"""Tables of figures."""

from __future__ import annotations

import csv

import pytest

from wsis.reports.table import markdown_table, mean_and_range, print_table, write_csv


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([], "-"),
        ([None], "-"),
        ([12.34], "12.3"),
        ([1, None, 4], "2.5 (1.0-4.0)"),
        ([2, 2], "2.0 (2.0-2.0)"),
    ],
)
def test_a_figure_of_several_runs(values, cell):
    assert mean_and_range(values) == cell


def test_bars_in_cells_end_no_cell():
    assert markdown_table([["", "AP"], ["a|b", "1"]]) == "|  | AP |\n| --- | --- |\n| a\\|b | 1 |"


def test_columns_stand_below_one_another(capsys):
    print_table([["", "AP"], ["pdsl", "65.5"]])
    assert capsys.readouterr().out == "        AP\npdsl  65.5\n"


def test_what_a_csv_holds_is_read_back(tmp_path):
    rows = [{"name": 'one, "two"', "AP": "1"}, {"name": "line\nbreak", "AP": ""}]
    write_csv(tmp_path / "table.csv", rows)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
