"""Rows of a table side by side: what they share, how they fail, and what is written beside the paper's figures."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_run import FORK, weights

from wsis import ablate, fit
from wsis.errors import InputError
from wsis.reports.ablation import read_ablation
from wsis.runs import jobs

pytestmark = pytest.mark.slow

TOY = [
    "--data",
    "toy_plugins.Data",
    *[
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.max_steps",
        "6",
    ],
]
ROWS = {
    "fast": {"set": {"model.rate": 0.3}, "paper": [50.0]},
    "roi": {"config": "overlay.yaml", "paper": [None]},
    "again": {"set": {"model.rate": 0.3}},
}


class Forked:
    """A process of wsis.fit that starts in milliseconds; `children` holds all that were begun."""

    children: list[str] = []  # noqa: RUF012

    def __init__(self, job: jobs.Job, place: dict[str, str]) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.children.append(job.name)
        self.process = FORK.Process(target=_fit, args=(job.words, job.log, {**os.environ, **place}))
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.join()


def _fit(words, log, environment):
    os.environ.update(environment)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    fit.main(list(words))
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()  # which a process that has not been forked does by itself


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(jobs, "start", Forked)
    monkeypatch.setattr(jobs, "POLL", 0.01)
    Forked.children = []
    return Forked


def write(folder: Path, rows=ROWS, model="toy_plugins.Staged", **table) -> Path:
    (folder / "overlay.yaml").write_text("model:\n  init_args:\n    pool: roi\n")
    tables = {"widths": {"title": "Table 1", "metrics": ["loss"], "rows": rows} | table}
    (folder / "toy.yaml").write_text(
        yaml.safe_dump({"model": model, "paper": "A paper", "tables": tables}, sort_keys=False)
    )
    return folder / "toy.yaml"


def go(table: Path, *words: str):
    return ablate.main([str(table), "--out", str(table.parent / "out"), *TOY, *words])


def loss(run: Path) -> float:
    return json.loads((run / "3-net/metrics.json").read_text())["val/loss"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three rows, two seeds, two at a time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(jobs, "start", Forked)
    table = write(tmp_path_factory.mktemp("done"))
    rows = go(table, "--seeds", "2", "--jobs", "2")
    patch.undo()
    return table.parent / "out", rows


def test_rows_are_what_they_would_be_alone(done, tmp_path):
    out, _ = done
    for row, own in (("fast", ["--model.rate", "0.3"]), ("roi", ["--model.pool", "roi"])):
        for seed in ("0", "1"):
            alone = tmp_path / row / seed
            fit.main(
                [
                    "--model",
                    "toy_plugins.Staged",
                    *TOY,
                    *own,
                    "--seed_everything",
                    seed,
                    "--run_dir",
                    str(alone),
                ]
            )
            for stage in ("1-first", "3-net"):
                ours, theirs = weights(out / row / seed / stage), weights(alone / stage)
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rows_share_what_is_the_same_and_nothing_else(done):
    out, _ = done

    def file(run: str, stage: str) -> bytes:
        return (out / run / stage / "checkpoints/last.ckpt").read_bytes()

    for seed in "01":
        assert file(f"fast/{seed}", "1-first") == file(f"roi/{seed}", "1-first")
        assert file(f"fast/{seed}", "3-net") != file(f"roi/{seed}", "3-net")
        assert file(f"fast/{seed}", "3-net") == file(f"again/{seed}", "3-net")
    assert file("fast/0", "1-first") != file("fast/1", "1-first")
    assert "working" not in (out / "again/0/log.txt").read_text()


def test_prolonging_a_run_leaves_those_it_took_stages_from(done, tmp_path):
    lender = done[0] / "fast/0"
    before = {path: path.read_bytes() for path in lender.rglob("*") if path.is_file()}
    words = [
        "--model",
        "toy_plugins.Staged",
        *TOY,
        "--model.rate",
        "0.3",
        "--run_dir",
        str(tmp_path / "run"),
        "--reuse",
        str(done[0]),
    ]
    fit.main(words)
    checkpoint = "3-net/checkpoints/last.ckpt"
    assert (tmp_path / "run" / checkpoint).read_bytes() == (lender / checkpoint).read_bytes()
    fit.main([*words, "--trainer.max_steps", "9"])
    assert (
        torch.load(tmp_path / "run/3-net/checkpoints/last.ckpt", weights_only=True)["global_step"]
        == 9
    )
    assert {path: path.read_bytes() for path in before} == before


def test_table_has_the_papers_figures_beside_ours(done):
    out, rows = done
    fast, roi, again = csv.DictReader(open(out / "ablation.csv"))  # noqa: SIM115
    ours = [100 * loss(out / "fast" / seed) for seed in "01"]
    assert [float(fast[f"loss{end}"]) for end in ("", "_min", "_max")] == pytest.approx(
        [sum(ours) / 2, min(ours), max(ours)], abs=0.006
    )
    assert (fast["loss_paper"], roi["loss_paper"], again["loss_paper"]) == ("50.00", "", "")
    assert (fast["seeds"], fast["paper"], roi["config"]) == (
        "2",
        "A paper, Table 1",
        "--model.pool=roi",
    )
    cells = f"| fast | {sum(ours) / 2:.1f} ({min(ours):.1f}-{max(ours):.1f}) [50.0] | 2 |"
    assert cells in (out / "ablation.md").read_text()
    assert [found.name for found in rows] == ["fast", "roi", "again"]


def test_what_is_done_is_not_done_again(done, forked, capsys):
    out, _ = done
    go(out.parent / "toy.yaml", "--seeds", "2")
    assert forked.children == []
    assert "6 done before" in capsys.readouterr().out


def test_a_row_that_fails_stops_no_other_and_is_continued(tmp_path, monkeypatch, capsys, forked):
    table = write(tmp_path, {"fast": ROWS["fast"], "narrow": {"set": {"model.width": 3}}})
    monkeypatch.setenv("TOY_KILL_MAKE", "3")  # killed in the second stage
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as stop:
        go(table, "--seeds", "1")
    shown = capsys.readouterr()
    assert stop.value.code == 1
    log = tmp_path / "out/{}/0/log.txt"
    assert (
        shown.err
        == f"failed: fast/0 ({str(log).format('fast')}), narrow/0 ({str(log).format('narrow')})\n"
    )
    assert "FAILED" in shown.out
    monkeypatch.delenv("TOY_KILL_MAKE")
    (out,) = go(table, "--seeds", "1", "--rows", "narrow")
    assert "1-first: done before" in (tmp_path / "out/narrow/0/log.txt").read_text()
    assert out.metrics["loss"] == pytest.approx([loss(tmp_path / "out/narrow/0")])
    assert forked.children == ["fast/0", "narrow/0", "narrow/0"]


def test_a_row_that_fails_with_other_settings_shows_no_old_figures(tmp_path, monkeypatch, forked):
    table = write(tmp_path, {"fast": ROWS["fast"], "narrow": {"set": {"model.width": 3}}})
    go(table, "--seeds", "1")
    monkeypatch.setenv("TOY_KILL_MAKE", "3")
    with pytest.raises(SystemExit):
        go(table, "--seeds", "1", "--rows", "fast", "--model.width", "5")
    with (tmp_path / "out/ablation.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["narrow"]


def test_other_settings_do_it_again(tmp_path, forked):
    table = write(tmp_path, {"fast": ROWS["fast"]})
    for words in (
        [],
        ["--model.width", "2"],
        ["--model.width", "2"],
        ["--model.width", "2", "--model.rate", "0.5"],
    ):
        go(table, "--seeds", "1", *words)
    assert len(forked.children) == 2  # the row's own rate comes after the one given for all


def test_a_row_waits_for_those_it_takes_over_from(monkeypatch, tmp_path):
    """With room for all at once, no row begins before the first of its seed has ended."""
    seen = []
    monkeypatch.setattr(ablate, "work", lambda todo, *_: seen.extend(todo))
    go(write(tmp_path), "--seeds", "2", "--jobs", "9")
    after = {job.name: set(job.after) for job in seen}
    assert after["fast/0"] == after["fast/1"] == set()
    assert after["roi/1"] == {"fast/1"}
    assert after["again/0"] == {"fast/0"}


def test_ended_jobs_make_room_in_order():
    log, begun, most = Path("/dev/null"), [], []
    todo = [
        jobs.Job(name, (name,), log, frozenset(after))
        for name, after in (("a", ""), ("b", "a"), ("c", ""), ("d", "z"))
    ]

    class Instant:
        open = 0

        def __init__(self, job, place):
            Instant.open += 1
            most.append(Instant.open)
            self.job, self.until = job, time.monotonic() + 0.05

        def poll(self):
            if time.monotonic() < self.until:
                return None
            Instant.open -= 1
            return int(self.job.name == "a")

        @property
        def returncode(self):
            return int(self.job.name == "a")

    ended = []
    patch = pytest.MonkeyPatch()
    patch.setattr(jobs, "start", Instant)
    jobs.work(
        todo,
        lambda: [{}, {}],
        lambda job: begun.append(job.name),
        lambda job, well: ended.append((job.name, well)),
    )
    patch.undo()
    assert begun[:2] == ["a", "c"]
    assert sorted(begun) == ["a", "b", "c", "d"]
    assert max(most) == 2
    assert dict(ended) == {"a": False, "b": True, "c": True, "d": True}


@pytest.mark.parametrize(
    ("asked", "peak", "cores", "free", "count"),
    [
        ("auto", 0, 8, 100, 1),
        ("auto", 10, 8, 100, 8),
        ("auto", 10, 16, 61, 5),
        ("auto", 10, 8, 5, 1),
        (3, 0, 8, 5, 3),
    ],
)
def test_how_many_fit(asked, peak, cores, free, count, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs, "cores", lambda: cores)
    monkeypatch.setattr(jobs, "free_memory", lambda: free)
    places = jobs.places_for(asked, peak)
    assert len(places) == count
    assert {place["OMP_NUM_THREADS"] for place in places} == {str(max(1, cores // count))}


def test_each_gpu_has_its_share(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gib = 2**30
    monkeypatch.setattr(jobs, "cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((40 * gib, 15 * gib)[i], 80 * gib))
    shares = [
        place["CUDA_VISIBLE_DEVICES"] for place in jobs.places_for("auto", 10 * gib, gpu=True)
    ]
    assert sorted(shares) == ["0", "0", "0", "1"]  # 13 GiB each
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in jobs.places_for(3, gpu=True)] == [
        "4",
        "7",
        "4",
    ]
    assert jobs.places_for("auto", 10 * gib, gpu=True, devices="2")[0].keys() == {"OMP_NUM_THREADS"}


def test_free_memory_is_that_of_a_machine():
    assert 2**20 < jobs.free_memory() < 2**50


MISTAKES = {
    "setting first": (["--seeds", "3"], "name a file of tables first"),
    "no such file": (["gone.yaml"], "cannot read settings file gone.yaml"),
    "an overlay": (["overlay.yaml"], "overlay.yaml is no file of ablation tables"),
    "no such row": (
        ["toy.yaml", "--rows", "fas"],
        "no row of toy is called 'fas'; did you mean 'fast'?",
    ),
    "not a number": (["toy.yaml", "--seeds", "x"], "see python -m wsis.ablate --help"),
    "no seed": (["toy.yaml", "--seeds", "0"], "--seeds and --jobs are 1 at least"),
    "negative seed": (["toy.yaml", "--first_seed", "-1"], "--first_seed 0"),
    "given twice": (
        ["toy.yaml", "--run-dir", "x"],
        "--run_dir is set by wsis.ablate for each run",
    ),
    "unknown setting": (
        ["toy.yaml", *TOY, "--model.widht", "3"],
        "row fast: unknown setting 'model.widht'",
    ),
    "needs": (
        ["toy.yaml", *TOY, "--rows", "file"],
        "row file needs --data.labels, which is for it alone",
    ),
    "needed alone": (
        ["toy.yaml", *TOY, "--rows", "file", "fast", "--data.labels", "x"],
        "row file has --data.labels for itself",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_before_anything_is_trained(
    mistake, tmp_path, monkeypatch, capsys, forked
):
    words, says = MISTAKES[mistake]
    write(tmp_path, ROWS | {"file": {"needs": "data.labels"}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        ablate.main(words)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert forked.children == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            {"good": ROWS["fast"], "bad": {"set": {"model.width": "three"}}},
            "row bad: --model.width three: expected",
        ),
        ({"bad": {"set": {"model.fast": 3}}}, "row bad: unknown setting 'model.fast'"),
        ({"bad": {"config": "gone.yaml"}}, "gone.yaml"),
        ({"bad": {"paper": [1.0, 2.0]}}, "row 'bad' in {}: give 1 metrics of the paper (loss)"),
        ({"bad": {"model": ""}}, "row 'bad' in {} needs `model: NAME`"),
        ({"bad": {"overlay": "x"}}, "row 'bad' in {}: unknown 'overlay'"),
        ({"bad": 3}, "row 'bad' in {} must hold"),
        ({"../bad": {}}, "a row's name is its folder's"),
    ],
)
def test_bad_tables_are_one_line(rows, says, tmp_path, capsys, forked):
    table = write(tmp_path, rows)
    with pytest.raises(SystemExit):
        go(table)
    err = capsys.readouterr().err
    assert says.format(table) in err
    assert err.count("\n") == 1
    assert forked.children == []


def test_a_folder_of_other_tables_is_refused(tmp_path, capsys, forked):
    table = write(tmp_path, {"fast": ROWS["fast"]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ablation.json").write_text(
        '{"model": "pdsl", "tables": "pdsl", "data": "voc"}'
    )
    with pytest.raises(SystemExit):
        go(table)
    assert "holds rows of pdsl on voc; give another --out" in capsys.readouterr().err
    assert forked.children == []


def test_what_stages_refuse_is_told_before_anything_is_trained(tmp_path, capsys, forked):
    """PDSL looks at its classifier's settings when its stages begin, not when it is made."""
    rows = {"good": {}, "bad": {"set": {"model.pretraining": {"step": 3}}}}
    table = write(tmp_path, rows, model="pdsl")
    small = ["--data.root", str(tmp_path / "data"), "--data.train", "2", "--data.val", "2"]
    with pytest.raises(SystemExit):
        ablate.main([str(table), "--out", str(tmp_path / "out"), *small])
    assert "row bad: " in capsys.readouterr().err
    assert forked.children == []


def test_rows_that_need_a_file_are_left_out_and_run_alone(tmp_path, capsys):
    table = write(tmp_path, {"fast": ROWS["fast"], "file": {"needs": "data.labels"}})
    (tmp_path / "labels.json").write_text("{}")
    go(table, "--seeds", "1")
    assert "left out: file, which needs --data.labels" in capsys.readouterr().out
    both = go(
        table, "--seeds", "1", "--rows", "file", "--data.labels", str(tmp_path / "labels.json")
    )
    assert [found.name for found in both] == ["fast", "file"]


def test_words_are_told_apart():
    own, theirs = ablate._divide(
        [
            "toy.yaml",
            "--data.root",
            "./model",
            "--first-seed",
            "3",
            "--save-every=2",
            "--rows",
            "a",
            "b",
        ]
    )
    assert own == ["toy.yaml", "--first_seed", "3", "--rows", "a", "b"]
    assert theirs == ["--data.root", "./model", "--save_every=2"]


def test_tables_and_rows_are_chosen_by_name(tmp_path):
    first = {"metrics": ["loss"], "rows": {"a": {}, "b": {}}}
    (tmp_path / "toy.yaml").write_text(
        yaml.safe_dump(
            {"model": "cam", "tables": {"one": first, "two": {"metrics": [], "rows": {"c": {}}}}}
        )
    )
    ablation = read_ablation(tmp_path / "toy.yaml")
    assert [row.name for _, row in ablation.choose(["one", "c"])] == ["a", "b", "c"]
    assert [row.name for _, row in ablation.choose(["b"])] == ["b"]
    with pytest.raises(InputError, match="no row of toy is called 'd'"):
        ablation.choose(["a", "d"])


def test_settings_may_have_the_seed(tmp_path):
    table = write(tmp_path, {"narrow": {}})
    (found,) = go(table, "--seeds", "2", "--first_seed", "3", "--model.width", "{seed}")
    assert [run.name for run in found.runs] == ["3", "4"]
    for run in found.runs:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert (
            settings["seed_everything"] == settings["model"]["init_args"]["width"] == int(run.name)
        )


def test_a_stage_alone(tmp_path):
    table = write(tmp_path, {"fast": ROWS["fast"]}, stage="1-first")
    (found,) = go(table, "--seeds", "1")
    assert {path.name for path in found.runs[0].iterdir() if path.is_dir()} == {"1-first"}


def test_wandb_has_a_group_of_rows_and_the_table(tmp_path, monkeypatch):
    from wandb_files import read_wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    table = write(tmp_path, {"fast": ROWS["fast"]})
    go(table, "--seeds", "1", "--wandb.project", "trial")
    runs = [read_wandb(path) for path in sorted((tmp_path / "out").rglob("offline-run*/*.wandb"))]
    assert {run.group for run in runs} == {"ablate-toy"}
    assert {run.name for run in runs} == {"fast/0/1-first", "fast/0/3-net", "ablate-toy"}
    (last,) = [run for run in runs if run.name == "ablate-toy"]
    (shown,) = last.series("ablate-toy")
    content = json.loads((last.files / shown["path"]).read_text())
    assert dict(zip(content["columns"], content["data"][0], strict=True))["loss_paper"] == 50.0


@pytest.mark.filterwarnings("ignore")
def test_a_real_process_trains_and_ends_with_its_batch(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    job = jobs.Job(
        "real",
        ("--model", "toy_plugins.Staged", *TOY, "--run_dir", str(tmp_path / "run")),
        tmp_path / "log.txt",
    )
    ended = []
    jobs.work(
        [job], lambda: [{"TOY_SLOW": "0"}], lambda _: None, lambda job, well: ended.append(well)
    )
    assert ended == [True], job.log.read_text()
    assert loss(tmp_path / "run") > 0


def _batch(log, python):
    jobs.sys.executable = python
    jobs.work([jobs.Job("sleeper", (), log)], lambda: [{}], lambda _: None, lambda *_: None)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc")
def test_a_killed_batch_leaves_no_process(tmp_path):
    python, log = tmp_path / "python", tmp_path / "log.txt"
    python.write_text("#!/bin/sh\necho $$\nexec sleep 100\n")
    python.chmod(0o755)
    batch = FORK.Process(target=_batch, args=(log, str(python)))
    batch.start()
    until = time.monotonic() + 60
    while not log.exists() or not log.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    child = int(log.read_text())
    os.kill(batch.pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while (
        Path(f"/proc/{child}/stat").exists()
        and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z"
    ):
        assert time.monotonic() < until
        time.sleep(0.02)
