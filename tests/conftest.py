"""How tests share a machine, and how property tests run.

Never by the clock, because machines are busy; in CI with the same examples every time.
"""

import gc
import os
import re
import tempfile

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before torch is imported, and for the processes that tests start
    os.environ.setdefault(
        "OMP_NUM_THREADS",
        str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))),
    )

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

CACHE = tempfile.TemporaryDirectory(prefix="wsis-cache-")
os.environ.setdefault("WSIS_CACHE", CACHE.name)  # not what the user of this machine has there

settings.register_profile(
    "wsis",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("wsis")

from wsis import registry  # noqa: E402

TOYS = frozenset({"toy_detector", "toy_panoptic", "toy_plugins", "toy_proposer"})
"""Modules of tests that count as installed: files may name their classes."""
is_installed = registry._is_installed
registry._is_installed = lambda kind, path: path.split(".")[0] in TOYS or is_installed(kind, path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that have a longer time-out, so that none of them is alone at the end."""
    patience = {item: item.get_closest_marker("timeout") for item in items}
    items.sort(key=lambda item: -patience[item].args[0] if patience[item] else 0)


ALONE = ("test_learns.py", "test_notebooks.py")
"""Files whose tests share nothing, and take minutes each."""


class Units(LoadFileScheduling):
    """Sends the tests of a file to one worker, but those of a long file in several parts."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.endswith(ALONE):
            return nodeid
        if file.endswith("models/test_all.py"):  # the runs that its tests share are of one method
            return f"{file}::{re.split(r'[-[]', test)[-1]}"
        return file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Units:
    return Units(config, log)


def pytest_collection_finish() -> None:
    """Modules are no garbage; to look through them took half a second of every stage of a run."""
    gc.freeze()
