"""What the user sees when something goes wrong: one line with what, where and what to do."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning_fabric.utilities.exceptions import MisconfigurationException

from wsis.errors import InputError

__all__ = ["plain_errors", "quiet", "quietly"]

LOUD = {
    "pytorch_lightning": logging.WARNING,
    "lightning_fabric": logging.WARNING,
    "timm.models._builder": logging.ERROR,  # features do not use a classifier's weights
}
"""Loggers and the level from which on they are heard."""


@contextmanager
def plain_errors(hint: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn a user's mistake, a full disk or Ctrl-C into one line and an exit code.

    With `WSIS_TRACEBACK=1` in the environment, errors keep their traceback.

    Args:
        hint: what to add after an interruption, such as how to resume.
    """
    quiet()
    try:
        yield
    except KeyboardInterrupt:
        _stop(130, f"interrupted{hint()}")
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit(1)
            _stop(130, f"interrupted{hint()}")
        raise
    except (InputError, MisconfigurationException, OSError, RuntimeError) as error:
        line = _line_for(error, hint)
        if not line or os.environ.get("WSIS_TRACEBACK"):
            raise
        _stop(2, f"error: {line}")


def _line_for(error: Exception, hint: Callable[[], str]) -> str:
    """Return what to tell the user, "" for an error that is ours."""
    if isinstance(error, InputError):  # of a loader's process, at the end of a traceback
        message = str(error).rpartition("wsis.errors.InputError: ")[2]
        return " ".join(message.split("\n")).strip()  # names of files may have line breaks
    if isinstance(error, MisconfigurationException):
        return str(error).strip().splitlines()[-1]
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}{hint()}"
    cure = _starved(str(error))
    return f"{cure}{hint()}" if cure else ""


def _starved(message: str) -> str:
    """Return advice for an out-of-memory error of torch, "" for any other error."""
    if re.search(r"DataLoader worker \(pid|</torch_", message):
        return "loader processes are out of (shared) memory; have fewer: --data.loading.workers 0"
    if re.search(r"(CUDA|MPS|HIP|XPU).* out of memory|can't allocate memory", message):
        return "out of memory; use smaller batches or images, or fewer proposals"
    return ""


def _stop(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)


@contextmanager
def quietly() -> Iterator[None]:
    """Be as quiet as the command line, and then as before."""
    loggers = [logging.getLogger(name) for name in LOUD]
    levels, form = [logger.level for logger in loggers], warnings.formatwarning
    with warnings.catch_warnings():
        try:
            quiet()
            yield
        finally:
            warnings.formatwarning = form
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def quiet() -> None:
    """Silence Lightning's tips and warnings about what our runs take care of."""
    for name, level in LOUD.items():
        logging.getLogger(name).setLevel(level)
    warnings.formatwarning = _warning
    for message in (
        ".*does not have many workers",
        ".*your dataloader is not resumable",  # our sampler goes on at the step of the checkpoint
        ".*smaller than the logging interval",
        ".*across ranks is zero",  # data without a validation split
        ".*have no `validation_step`",  # parts that are judged by what follows from them
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        ".*in eval mode at the start of training",  # frozen BatchNorm
        ".*GPU available but not used",
        ".*JsonargparseDeprecationWarning",
        ".*Trying to infer the `batch_size`",
    ):
        warnings.filterwarnings("ignore", message)


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return one line, without a place in the code if the warning is for the user."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
