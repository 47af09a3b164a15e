"""Loading other people's models: weights from safetensors alone, none of their code, and one line where it fails."""

from __future__ import annotations

import importlib
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch

from wsis.errors import InputError

__all__ = ["DTYPES", "device_of", "loading", "need", "offline", "quiet", "safe"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def need(package: str) -> ModuleType:
    """Import a package of the extra `generate`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise InputError(f'wsis.generate needs {package}: pip install -e ".[generate]"') from error


@contextmanager
def loading(part: str, name: str) -> Iterator[None]:
    """Turn whatever a library says of a model it cannot load into one line.

    Args:
        part: the setting that names the model.
        name: the model.

    Raises:
        InputError: the model cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for developers: options that have new names
            yield
    except InputError:
        raise
    except (
        Exception
    ) as error:  # libraries raise OSError, ValueError, KeyError, RuntimeError and their own
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        raise InputError(
            f"cannot load --{part} {name}: {reason[:160]}; give a folder that holds the model "
            "with its weights as safetensors"
        ) from error


def safe(**options: Any) -> dict[str, Any]:
    """Options of every `from_pretrained`: no pickles, no code of the model's, and no waiting for a hub out of reach."""
    return {"trust_remote_code": False, "local_files_only": offline(), **options}


@cache
def offline() -> bool:
    """Whether the hub has no address here; libraries would ask for a minute and more before they say so."""
    address = urlsplit(need("huggingface_hub.constants").ENDPOINT)
    if address.scheme in getproxies() and not proxy_bypass(address.hostname or ""):
        return False  # the proxy knows names that nobody here does
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return True
    return False


def device_of(name: str) -> torch.device:
    """Give the device of a name; "auto" is the accelerator where there is one."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            raise InputError(
                f"--device {name}: {str(error).splitlines()[0]}; give auto, cpu, cuda or mps"
            ) from error
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def quiet() -> None:
    """Leave one progress bar, ours, and no advice of the libraries'."""
    for package in ("transformers", "diffusers"):
        if find_spec(package):
            logging = importlib.import_module(f"{package}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()
