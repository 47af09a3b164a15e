"""Safe loading of third-party models: safetensors only, no remote code, one-line errors."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from wsis.errors import InputError

__all__ = ["DTYPES", "check_installed", "device_of", "loading", "need", "quiet", "safe"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def need(package: str) -> ModuleType:
    """Import a package of the extra `generate`.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise InputError(_missing(package)) from error


def check_installed(*packages: str) -> None:
    """Raise InputError, before anything takes long, if a package is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(_missing(package))


def _missing(package: str) -> str:
    return f'wsis.generate needs {package}: pip install "wsis[generate]"'


@contextmanager
def loading(part: str, name: str) -> Iterator[None]:
    """Turn a library's error about a model it cannot load into one line.

    Args:
        part: the setting that names the model.
        name: the model.

    Raises:
        InputError: the model cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations, which users can do nothing about
            yield
    except InputError:
        raise
    # libraries raise OSError, ValueError, KeyError, RuntimeError and their own
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        raise InputError(
            f"cannot load --{part} {name}: {reason[:160]}; give a folder that holds the model "
            "with its weights as safetensors"
        ) from error


def safe(**options: Any) -> dict[str, Any]:
    """Return options of `from_pretrained`, and that code from a hub is not run."""
    return {"trust_remote_code": False, **options}


def device_of(name: str) -> torch.device:
    """Return the device of a name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            raise InputError(
                f"--device {name}: {str(error).splitlines()[0]}; give auto, cpu, cuda or mps"
            ) from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def quiet() -> None:
    """Silence the libraries' progress bars and advice."""
    for package in ("transformers", "diffusers"):
        if find_spec(package):
            logging = importlib.import_module(f"{package}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()
