"""Runs that are killed, starved and disturbed end as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest  # noqa: F401 - toys count as installed in child processes, too
import pytest
import torch
import toy_plugins

from wsis import fit
from wsis.errors import InputError
from wsis.files import atomic_write, clear_scratch
from wsis.fingerprint import digest, fingerprint
from wsis.inference import trained
from wsis.runs import checkpoints
from wsis.runs.checkpoints import newest, step_of
from wsis.runs.record import adopt

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["toy_plugins", "wsis.fit"])  # cheap to kill
WORDS = [
    "--data",
    "toy_plugins.Data",
    "--trainer.accelerator",
    "cpu",
    "--trainer.log_every_n_steps",
    "1",
]


def words(model: str, folder: Path, *more: str) -> list[str]:
    return [
        "--model",
        f"toy_plugins.{model}",
        *WORDS,
        "--run_dir",
        str(folder),
        *" ".join(more).split(),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()


def _child(argv, prepare, arguments, errors):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with open(errors, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if prepare:
        prepare(*arguments)
    fit.main(argv)


def start(argv, tmp_path, prepare=None, *arguments):
    process = FORK.Process(target=_child, args=(argv, prepare, arguments, tmp_path / "out.txt"))
    process.start()
    return process


def go(argv, tmp_path, prepare=None, *arguments) -> tuple[int, str]:
    process = start(argv, tmp_path, prepare, *arguments)
    process.join(60)
    return process.exitcode, (tmp_path / "out.txt").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run of three stages, with accumulated gradients and a checkpoint every third step."""
    folder = tmp_path_factory.mktemp("whole")
    fit.main(words("Staged", folder, STAGED))
    return folder


STAGED = "--trainer.max_steps 14 --trainer.accumulate_grad_batches 2 --save_every 3"


def test_killed_anywhere(tmp_path, whole):
    slow = {"TOY_SLOW": "0.03"}
    argv = words("Staged", tmp_path / "run", STAGED)
    moments, continued = random.Random(os.environ.get("WSIS_TEST_SEED", "7")), 0
    for attempt in range(8):
        process = start(argv, tmp_path, _slow, slow)
        wait_for_stage(tmp_path / "out.txt", process)
        if attempt % 2:  # however fast the machine is, some kills fall between two checkpoints
            wait_for_checkpoint(tmp_path / "run", process)
        process.join(moments.uniform(0, 0.2 if attempt % 2 else 0.5))
        process.kill()
        process.join()
        continued += "continuing at step" in (tmp_path / "out.txt").read_text()
    code, said = go(argv, tmp_path)
    assert code == 0, said
    assert continued + ("continuing" in said), "no kill hit a training"
    for stage in ("1-first", "3-net"):
        assert_same(tmp_path / "run" / stage, whole / stage)
    assert not list((tmp_path / "run").rglob(".*")), "scratch files are left"


def wait_for_stage(out, process):
    while process.is_alive() and "working" not in (out.read_text() if out.exists() else ""):
        time.sleep(0.01)


def wait_for_checkpoint(run, process):
    """Wait until a training that is not finished has saved something."""
    while process.is_alive():
        for stage in run.glob("*/stage.json"):
            begun = any((stage.parent / "checkpoints").glob("*.ckpt"))
            if begun and '"finished": false' in stage.read_text():
                return
        time.sleep(0.01)


def _slow(environment):
    toy_plugins.SLOW = float(environment["TOY_SLOW"])


def _die_in_save(number):
    save, count = torch.save, [0]

    def torn(thing, file):
        count[0] += 1
        save(thing, file)
        if count[0] == number:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = torn


def test_killed_while_a_checkpoint_is_written(tmp_path, whole):
    argv = words("Staged", tmp_path / "run", STAGED)
    for number in (2, 1, 3):  # in the first stage, in its continuation, in the last stage
        assert go(argv, tmp_path, _die_in_save, number)[0] == -signal.SIGKILL
    assert go(argv, tmp_path)[0] == 0
    assert_same(tmp_path / "run/3-net", whole / "3-net")


def _die_in_replace(number):
    replace, count = os.replace, [0]

    def never(source, target):
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = never


def test_killed_as_a_small_file_is_written(tmp_path, whole):
    argv = words("Staged", tmp_path / "run", STAGED)
    for number in (1, 3):  # the run's own settings, a stage's
        assert go(argv, tmp_path, _die_in_replace, number)[0] == -signal.SIGKILL
        assert list((tmp_path / "run").rglob(".*"))
    assert go(argv, tmp_path)[0] == 0
    assert not list((tmp_path / "run").rglob(".*"))
    assert_same(tmp_path / "run/3-net", whole / "3-net")


def _die_in_make(i):
    os.environ["TOY_KILL_MAKE"] = str(i)


def test_killed_while_files_are_made(tmp_path, whole):
    argv = words("Staged", tmp_path / "run", STAGED)
    assert go(argv, tmp_path, _die_in_make, 3)[0] == -signal.SIGKILL
    assert not json.loads((tmp_path / "run/2-files/stage.json").read_text())["finished"]
    assert go(argv, tmp_path)[0] == 0
    assert_same(tmp_path / "run/3-net", whole / "3-net")


def test_damaged_checkpoint(tmp_path, whole):
    argv = words("Staged", tmp_path / "run", STAGED)
    assert go(argv, tmp_path, _die_in_save, 5)[0] == -signal.SIGKILL
    folder = tmp_path / "run/3-net/checkpoints"
    last = folder / "last.ckpt"
    assert (folder / "previous.ckpt").is_file()
    last.write_bytes(last.read_bytes()[:-1000])
    code, said = go(argv, tmp_path)
    assert code == 0
    assert "last.ckpt is missing or damaged" in said
    assert_same(folder.parent, whole / "3-net")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["state_dict"].pop("weight"), "holds other weights than Linear .* weight; del"),
        (lambda c: c["state_dict"].update(bias=torch.zeros(9)), "holds other weights .* bias; del"),
        (lambda c: c.update(state_dict=[1]), "holds other weights than Linear has"),
        (lambda c: c.pop("loops"), "is not the checkpoint of a run"),
    ],
)
def test_the_checkpoint_of_another_model_is_not_continued(tmp_path, change, told):
    path, module = tmp_path / "stage/checkpoints/last.ckpt", torch.nn.Linear(2, 3)
    path.parent.mkdir(parents=True)
    content = {"state_dict": module.state_dict(), "global_step": 7, "loops": {}}
    content["optimizer_states"] = []
    torch.save(content, path)
    assert step_of(path, module) == 7
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=told):
        step_of(path, module)


def test_all_checkpoints_damaged(tmp_path):
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"PK torn")
    with pytest.raises(
        InputError,
        match=r"is damaged and there is no earlier one; delete .* to begin this stage again",
    ):
        newest(tmp_path)


def test_prolonged_equals_longer(tmp_path):
    assert go(words("Net", tmp_path / "long", "--trainer.max_steps 9"), tmp_path)[0] == 0
    assert go(words("Net", tmp_path / "run", "--trainer.max_steps 5"), tmp_path)[0] == 0
    code, said = go(["--resume", str(tmp_path / "run/train"), "--trainer.max_steps", "9"], tmp_path)
    assert code == 0
    assert "continuing at step 5" in said
    assert_same(tmp_path / "run/train", tmp_path / "long/train")
    code, said = go(["--resume", str(tmp_path / "run"), "--trainer.max_steps", "3"], tmp_path)
    assert code == 2
    assert "has trained 9 steps" in said


def marks(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/stage.json")}


def test_stages_are_skipped_or_redone(tmp_path, whole):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat")
    base = f"{STAGED} --data.labels {labels} --model.width 3"
    argv = words("Staged", tmp_path / "run", base)
    go(argv, tmp_path)
    first = marks(tmp_path / "run")
    assert list(first)
    assert go([*argv, "--data.root", "/elsewhere"], tmp_path)[0] == 0
    assert marks(tmp_path / "run") == first, "a path is no setting"
    go([*argv, "--model.width", "5"], tmp_path)
    wider = marks(tmp_path / "run")
    assert wider["1-first"] == first["1-first"]
    assert wider["2-files"] != first["2-files"]
    assert wider["3-net"] != first["3-net"]
    labels.write_text("dog")
    go([*argv, "--model.width", "5"], tmp_path)
    assert all(marks(tmp_path / "run")[stage] != wider[stage] for stage in wider), (
        "other labels, other results"
    )


def test_one_stage(tmp_path):
    argv = words("Staged", tmp_path / "run", STAGED)
    code, said = go([*argv, "--stage", "2-files"], tmp_path)
    assert code == 2
    assert (
        "stage '1-first' is not finished with these settings, so '2-files' was not reached" in said
    )
    assert go([*argv, "--stage", "1-first"], tmp_path)[0] == 0
    assert go([*argv, "--stage", "2-files"], tmp_path)[0] == 0
    (tmp_path / "labels.txt").write_text("cat")
    code, said = go(
        [*argv, "--stage", "2-files", "--data.labels", str(tmp_path / "labels.txt")], tmp_path
    )
    assert code == 2, "what is there is of other settings"
    assert "stage '1-first' is not finished" in said
    other = words("Staged", tmp_path / "other", STAGED)
    assert go([*other, "--stage", "2-files", "--reuse", str(tmp_path / "run")], tmp_path)[0] == 0, (
        "1-first is taken from there"
    )
    code, said = go(["--resume", str(tmp_path / "run"), "--list-stages"], tmp_path)
    assert [line.split() for line in said.splitlines()] == [
        ["1-first", "finished"],
        ["2-files", "finished"],
    ]


def test_a_stage_that_there_is_not(tmp_path, whole):
    code, said = go(["--resume", str(whole), "--stage", "9-net"], tmp_path)
    assert code == 2
    assert "no stage is called '9-net' (have: 1-first, 2-files, 3-net)" in said


def test_stages_that_a_method_no_longer_has_are_gone(tmp_path):
    folder = tmp_path / "run"
    assert go(words("Staged", folder, STAGED), tmp_path)[0] == 0
    assert list(trained(folder)) == ["3-net"]
    code, said = go(words("Net", folder, STAGED), tmp_path)
    assert code == 0
    assert "3-net: no longer a stage of this run" in said
    assert [path.parent.name for path in folder.glob("*/stage.json")] == ["train"]


def test_what_follows_an_unfinished_stage_is_of_other_settings(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    entry = folder / "2-files/stage.json"
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"finished": False}))
    with pytest.raises(InputError, match="no finished stage that predicts"):
        trained(folder)


def test_a_users_hidden_files_stay(tmp_path):
    with atomic_write(tmp_path / "deep/a.txt") as scratch:
        torn = shutil.copy(scratch, tmp_path / scratch.name)
    (tmp_path / ".env.template").touch()
    clear_scratch(tmp_path)
    assert not Path(torn).exists()
    assert (tmp_path / ".env.template").exists()


def test_what_is_taken_over_is_new_here(tmp_path, whole):
    """So that predictions made here before are older."""
    adopt(whole / "1-first", tmp_path / "run/1-first")
    theirs, ours = (run / "1-first/checkpoints/last.ckpt" for run in (whole, tmp_path / "run"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_mtime_ns > theirs.stat().st_mtime_ns


def _limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk(tmp_path):
    argv = words("Net", tmp_path / "run", "--trainer.max_steps 6 --save_every 2")
    code, said = go([*argv, "--model.width", "4000"], tmp_path, _limit, 100_000)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: cannot write")
    assert "free space" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert not list((tmp_path / "run").rglob(".*")), "a scratch file is left"
    assert go([*argv, "--model.width", "4000"], tmp_path)[0] == 0


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    code, said = go(words("Net", tmp_path / "file/run"), tmp_path)
    assert code == 2
    assert "error: cannot write" in said
    assert "Traceback" not in said


def test_frozen_random_features_are_refused(tmp_path, capsys):
    """Without a network connection, weights none looked like a remedy, and trained on noise."""
    words = (
        f"--model classifier --data shapes --data.root {tmp_path}/shapes --run_dir {tmp_path}/run"
    )
    words += " --data.train 2 --data.val 1 --data.proposals none --model.backbone.name test_byobnet"
    words += " --model.backbone.weights none --trainer.max_steps 1 --trainer.accelerator cpu"
    with pytest.raises(SystemExit):
        fit.main([*words.split(), "--model.backbone.frozen_stages", "5"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Classifier would learn from random features" in line
    fit.main([*words.split(), "--model.backbone.frozen_stages", "0"])
    fit.main([*words.split(), "--model.backbone.frozen_stages", "1"])


def test_interrupted(tmp_path):
    process = start(
        words("Net", tmp_path / "run", "--trainer.max_steps 100000"),
        tmp_path,
        _slow,
        {"TOY_SLOW": "0.001"},
    )
    wait_for_stage(tmp_path / "out.txt", process)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    said = (tmp_path / "out.txt").read_text()
    assert process.exitcode == 130, said
    assert (
        said.splitlines()[-1]
        == f"interrupted; to continue: python -m wsis.fit --resume {tmp_path / 'run'}"
    )


def test_an_interruption_loses_no_step(tmp_path):
    """Ctrl-C stops after the step at hand, and what follows is as if nothing had happened."""
    more = "--trainer.max_steps 300 --save_every 100000"
    argv = words("Net", tmp_path / "run", more)
    process = start(argv, tmp_path, _slow, {"TOY_SLOW": "0.01"})
    log = tmp_path / "run/train/metrics.csv"
    while process.is_alive() and not (log.is_file() and len(log.read_text().splitlines()) > 20):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert "stopping after this step" in (tmp_path / "out.txt").read_text()
    saved = torch.load(tmp_path / "run/train/checkpoints/last.ckpt", weights_only=True)
    rows = len(log.read_text().splitlines()) - 1
    assert 20 <= saved["global_step"] == rows < 300
    code, said = go(argv, tmp_path)
    assert code == 0, said
    assert f"continuing at step {rows}" in said
    fit.main(words("Net", tmp_path / "whole", more))
    assert_same(tmp_path / "run/train", tmp_path / "whole/train")


def test_saved_by_the_clock(tmp_path, monkeypatch):
    """At least every ten minutes, however slow a step is."""
    clock = [0.0]
    monkeypatch.setattr("wsis.runs.checkpoints.time.monotonic", lambda: clock[0])
    steps, save = [], checkpoints.CheckpointCallback._save

    def note(self, trainer):
        steps.append(trainer.global_step)
        save(self, trainer)

    def two_minutes(*_):
        clock[0] += 120

    monkeypatch.setattr(checkpoints.CheckpointCallback, "_save", note)
    monkeypatch.setattr(checkpoints.Reseed, "on_train_batch_start", two_minutes)
    fit.main(words("Net", tmp_path / "run", "--trainer.max_steps 14 --save_every 100000"))
    assert steps == [6, 12, 14]


def test_two_processes(tmp_path):
    command = [sys.executable, "-m", "wsis.fit", *words("Predicting", tmp_path / "run")]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "3"]
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    ended = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    stages = {
        path.parent.name: json.loads(path.read_text())
        for path in (tmp_path / "run").glob("*/stage.json")
    }
    assert {name: stage["finished"] for name, stage in stages.items()} == dict.fromkeys(
        ("1-slow", "2-net", "3-all", "4-after"), True
    )
    assert stages["2-net"]["settings"]["processes"] == 2, (
        "what one process trains is another result"
    )
    results = json.loads((tmp_path / "run/3-all/predictions.json").read_text())
    assert sorted(result["image_id"] for result in results) == list(range(11)), "each image once"
    assert {result["category_id"] for result in results} == {7}


def test_fingerprint_sees_contents_not_places(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("same" if name != "c" else "other")
    of = {name: fingerprint({"labels": tmp_path / name}) for name in ("a", "b", "c")}
    assert of["a"] == of["b"] != of["c"]
    assert fingerprint({"root": tmp_path}) == fingerprint({"root": tmp_path / "missing"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_text("same")
    assert fingerprint({"labels": "w.pt"}) == of["a"] != fingerprint({"labels": "gone.pt"})
    assert fingerprint({"labels": "a"}) != of["a"], "a name, though a file has it"
    assert fingerprint({"pool": "moi"}) != fingerprint({"pool": "roi"})
    assert fingerprint({"x": (1, 2)}) == fingerprint({"x": [1, 2]})


def test_a_digest_is_of_values_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest({"labels": "w.pt", "root": tmp_path, "counts": b"a1"})
    (tmp_path / "w.pt").write_text("same")
    assert digest({"counts": b"a1", "root": tmp_path, "labels": "w.pt"}) == before
    assert len(before) == 16
    assert digest({"labels": "v.pt", "root": tmp_path, "counts": b"a1"}) != before
