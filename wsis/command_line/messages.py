"""What the user sees when something goes wrong: one line that says what, where and what to do."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning_fabric.utilities.exceptions import MisconfigurationException

from wsis.errors import InputError

__all__ = ["plain_errors", "quiet"]


@contextmanager
def plain_errors(hint: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn a user's mistake, a full disk or Ctrl-C into one line and an exit code; `WSIS_TRACEBACK=1` shows all.

    Args:
        hint: what to say after an interruption, such as how to resume.
    """
    quiet()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_stop(130, f"interrupted{hint()}"))
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit(1)
            sys.exit(_stop(130, f"interrupted{hint()}"))
        raise
    except (InputError, MisconfigurationException) as error:
        if os.environ.get("WSIS_TRACEBACK"):
            raise
        sys.exit(
            _stop(
                2,
                f"error: {str(error).strip().splitlines()[-1].removeprefix('wsis.errors.InputError: ')}",
            )
        )
    except OSError as error:
        if os.environ.get("WSIS_TRACEBACK"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_stop(2, f"error: {where}{error.strerror or error}{hint()}"))
    except RuntimeError as error:
        if os.environ.get("WSIS_TRACEBACK") or not (cure := _starved(str(error))):
            raise
        sys.exit(_stop(2, f"error: {cure}{hint()}"))


def _starved(message: str) -> str:
    """What to do about an error of torch that means want of memory, "" for any other."""
    if re.search(r"DataLoader worker \(pid|</torch_", message):
        return "loader processes are out of (shared) memory; have fewer: --data.loading.workers 0"
    if re.search(r"(CUDA|MPS|HIP|XPU).* out of memory|can't allocate memory", message):
        return "out of memory; use smaller batches or images, or fewer proposals"
    return ""


def _stop(code: int, line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


def quiet() -> None:
    """Leave out Lightning's tips and what our runs see to by themselves."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("timm.models._builder").setLevel(
        logging.ERROR
    )  # features have no use for a classifier's weights
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
    """One line; what is said to the user does not say where in the code."""
    return (
        f"warning: {message}\n"
        if category is UserWarning
        else f"{filename}:{lineno}: {category.__name__}: {message}\n"
    )
