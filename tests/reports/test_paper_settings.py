"""When a run is in a paper's setting, and what is said to differ from its recipe."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsis.command_line.parser import CLI
from wsis.command_line.settings import recipe
from wsis.registry import names
from wsis.reports import papers
from wsis.reports.runs import Entry, EvaluationSet
from wsis.reports.settings import departures, row_key
from wsis.reports.table import known_metrics, lines_of, make_rows, markdown
from wsis.types import Index


def config(*words: str) -> dict[str, Any]:
    """The settings that wsis.fit would save, without making model or data."""

    class Parsed(CLI):
        def instantiate_classes(self) -> None:
            pass

    return yaml.safe_load(yaml.safe_dump(Parsed("fit", list(words)).settings()))


def entry(
    found: dict[str, Any],
    data: str,
    images: int,
    classes: int,
    backbone: str,
    method: str,
    **changes: Any,
) -> Entry:
    names = [{"name": str(c)} for c in range(classes)]
    index = Index(name=data, root=Path(), images=[{}] * images, categories=names)
    blank: dict[str, Any] = {field.name: "" for field in dataclasses.fields(Entry)}
    figures = {"AP50": 0.5}
    known = {
        "method": method,
        "backbone": backbone,
        "departures": departures(found),
        "evaluation_set": EvaluationSet(None, "val", index, 1, None),
        "panoptic": None,
    }
    costs = {
        "minutes": math.nan,
        "memory": math.nan,
        "seed": (0, 0),
        "key": row_key(found),
        "folder": Path("run"),
    }
    return Entry(
        **{
            **blank,
            **known,
            **costs,
            "metrics": figures,
            "per_class": {},
            "supervision": "tags",
            **changes,
        }
    )


RECIPES = [
    (m, d)
    for m in names("model")
    for d in ("voc", "coco", "shapes")
    if m != "classifier" and recipe(m, d)
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), RECIPES)
def test_a_recipe_departs_from_nothing(model, data):
    path = recipe(model, data)
    own = (
        data if path.stem.endswith(data) or path.parent.name == "shapes" or data == "voc" else "voc"
    )
    assert departures(config("--model", model, "--data", own)) == {}


@pytest.mark.slow
def test_departures_are_what_the_user_set():
    found = config(
        "--model", "pdsl", "--data", "voc", "--model.refinements", "3", "--data.augment.crop", "1.0"
    )
    assert departures(found) == {"model.refinements": 3, "data.augment.crop": 1.0}
    elsewhere = config(
        "--model",
        "pdsl",
        "--data",
        "voc",
        "--data.root",
        "/elsewhere",
        "--data.loading.workers",
        "7",
    )
    assert departures(elsewhere) == {}
    assert row_key(elsewhere) == row_key(
        config("--model", "pdsl", "--data", "voc", "--seed_everything", "3")
    )
    assert row_key(found) != row_key(elsewhere)
    for words in (
        ["--trainer.overfit_batches", "3"],
        ["--trainer.gradient_clip_algorithm", "value"],
    ):
        assert len(departures(config("--model", "pdsl", "--data", "voc", *words))) == 1
    without = config("--model", "boxcaseg", "--data", "voc", "--model.segmentor", "null")
    assert departures(without) == {"model.segmentor": None}
    longer = config("--model", "pdsl", "--data", "voc", "--trainer.max_steps", "7")
    assert departures(longer) == {"trainer.max_steps": 7}


def test_the_papers_figures_go_to_runs_in_their_setting():
    usual = config("--model", "pdsl", "--data", "voc")
    found = papers.published(entry(usual, "voc", 1449, 20, "resnet18_ws", "pdsl"))
    assert found.metrics == pytest.approx(
        {"AP25": 0.586, "AP50": 0.478, "AP75": 0.156, "AP": 0.208}
    )
    assert "ICCV 2021" in found.source
    other = config(
        "--model",
        "pdsl",
        "--data",
        "voc",
        "--model.backbone.name",
        "resnet50_ws",
        "--model.backbone.weights",
        "mine.pt",
    )
    assert papers.published(entry(other, "voc", 1449, 20, "resnet50_ws", "pdsl")).metrics[
        "AP50"
    ] == pytest.approx(0.496)


@pytest.mark.slow
def test_figures_by_vocs_protocol_are_shown_beside_ours_where_a_paper_has_them():
    """COCO's AP50 has no figure of a paper that reports VOC's, and a table without it no column."""
    shapes = {"AP50": 0.5, "VOC_AP25": 0.7, "VOC_AP50": 0.6, "box_VOC_AP50": 0.4}
    ccgr = entry(
        config("--model", "ccgr", "--data", "voc"),
        "voc",
        1449,
        20,
        "resnet50",
        "ccgr",
        metrics=shapes,
    )
    pdsl = entry(
        config("--model", "pdsl", "--data", "voc"),
        *("voc", 1449, 20, "resnet18_ws", "pdsl"),
        metrics=shapes,
    )
    assert papers.published(ccgr).metrics == pytest.approx({"VOC_AP25": 0.536, "VOC_AP50": 0.353})
    both, alone = make_rows([ccgr, pdsl]), make_rows([pdsl])
    assert list(known_metrics(both)) == ["AP50", "VOC_AP25", "VOC_AP50"]
    assert list(known_metrics(alone)) == ["AP50"]
    head, *lines = lines_of(both, known_metrics(both))
    cells = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert cells["ccgr"]["VOC_AP50"] == "60.0 [35.3]"
    assert cells["ccgr"]["AP50"] == "50.0"
    assert cells["pdsl"]["AP50"] == "50.0 [47.8]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "images", "classes", "joint", "things"),
    [
        ("voc", 1449, 20, {"PQ": 0.39}, {"AP50": 0.442, "AP75": 0.12}),
        ("coco", 5000, 80, {"PQ": 0.053}, {"AP50": 0.121, "AP75": 0.05, "AP": 0.061}),
    ],
)
def test_things_alone_have_figures_of_their_own(data, images, classes, joint, things):
    """JTSM's Tables 4 and 5 are of the joint method, Tables 6 and 7 of things alone."""
    for words, expected in (((), joint), (("--model.stuff", "false"), things)):
        found = config("--model", "jtsm", "--data", data, *words)
        run = entry(found, data, images, classes, "resnet18_ws_v2", "jtsm")
        assert papers.published(run).metrics == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "images", "classes", "backbone", "changes"),
    [
        ((), 100, 20, "resnet18_ws", {}),
        ((), 1449, 12, "resnet18_ws", {}),
        ((), 1449, 20, "mobilenetv2_100", {}),
        (("--model.refinements", "3"), 1449, 20, "resnet18_ws", {}),
        (("--trainer.max_steps", "100"), 1449, 20, "resnet18_ws", {}),
        ((), 1449, 20, "resnet18_ws", {"supervision": "labels by PDSL"}),
    ],
)
def test_other_settings_are_not_compared_with_papers(words, images, classes, backbone, changes):
    found = config("--model", "pdsl", "--data", "voc", *words)
    assert (
        papers.published(entry(found, "voc", images, classes, backbone, "pdsl", **changes)) is None
    )


@pytest.mark.slow
def test_every_paper_row_can_be_met_by_a_recipe():
    """Its method, data and classes exist, figures are percentages, and a recipe or a known departure has its backbone."""
    for (method, data, backbone, images, classes, departs), row in papers._rows().items():
        assert (method in names("model"), data in ("voc", "coco")) == (True, True)
        assert (images, classes) == {"voc": ("1449", "20"), "coco": ("5000", "80")}[data]
        values = [float(v) for k, v in row.items() if v and k not in (*papers._PLACE, "source")]
        assert values
        assert all(0 < value < 100 for value in values)
        assert row["source"]
        words = [f"--{setting}" for setting in departs.split()]
        usual = config("--model", method, "--data", data, *words)["model"]["init_args"]
        assert usual["backbone"]["name"] == backbone.split(", ")[0] or backbone in (
            "resnet50_ws",
            "resnet101_ws",
            "resnet50",
            "resnet101",
        )


def test_two_runs_of_a_seed_are_two_rows():
    usual = config("--model", "pdsl", "--data", "voc")
    one, other, more = (
        entry(usual, "voc", 1449, 20, "resnet18_ws", "pdsl", seed=(seed, 0), folder=Path(name))
        for name, seed in (("one", 0), ("other", 0), ("more", 1))
    )
    rows = {row.name: row.entries for row in make_rows([one, other, more])}
    assert rows == {"pdsl (1)": [one, more], "pdsl (2)": [other]}


def test_markdown_has_range_and_paper():
    usual = config("--model", "pdsl", "--data", "voc")
    runs = [
        entry(
            usual,
            "voc",
            1449,
            20,
            "resnet18_ws",
            "pdsl",
            seed=(s, 0),
            metrics={"AP50": v, "mIoU": math.nan},
        )
        for s, v in ((1, 0.5), (0, 0.4))
    ]
    rows = make_rows(runs)
    assert [e.seed for e in rows[0].entries] == [(0, 0), (1, 0)]
    text = markdown(rows)
    assert "| 45.0 (40.0-50.0) [47.8] |" in text
    assert "in brackets the paper's" in text
    assert "mIoU" not in text
    piped = markdown(make_rows([dataclasses.replace(runs[0], config="a|b")]))
    assert "a\\|b" in piped
