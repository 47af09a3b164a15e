"""Shared models on the hub of Hugging Face, through its client, which timm brings."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.sharing.folder import (
    CARD,
    DIGESTS,
    MODEL,
    PICTURE,
    RECORD,
    SETTINGS,
    WEIGHTS,
    is_shared,
    is_whole,
)

__all__ = ["PREFIX", "check_login", "check_name", "download", "upload"]

PREFIX = "hub:"
LOADED = [WEIGHTS, MODEL, SETTINGS, DIGESTS, RECORD]
"""What is downloaded."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(name: str) -> None:
    """Raise InputError unless a name is USER/NAME."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(f"{PREFIX}{name}: give {PREFIX}USER/NAME")


def check_login() -> None:
    """Raise InputError without the client of the hub, or where nobody is logged in."""
    if not _client().get_token():
        raise InputError(
            "not logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token that may "
            "write"
        )


def upload(folder: Path, name: str, public: bool = False) -> str:
    """Upload a shared folder as a model of the hub; return its address.

    Args:
        folder: the shared folder.
        name: USER/NAME.
        public: whether all may see a model that is new; one that exists stays as it is.

    Raises:
        InputError: without the client, not logged in, or the hub refuses.
    """
    check_name(name)
    check_login()
    client = _client()
    try:
        made = client.create_repo(name, private=not public, exist_ok=True)
        client.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Share a model with wsis.share",
            allow_patterns=[*LOADED, CARD, PICTURE],
            delete_patterns=[RECORD, PICTURE],  # of what was shared under this name before
        )
    except Exception as error:  # the client and what it builds on raise many kinds
        raise _refused(f"upload to {PREFIX}{name}", error) from error
    return str(made)


def download(name: str, cache: Path) -> Path:
    """Download what loading reads of a model of the hub, once for each revision.

    Without a network, what was downloaded last is taken.

    Args:
        name: USER/NAME, also with @REVISION.
        cache: folder to download to.

    Raises:
        InputError: without the client, no such model, or no network.
    """
    name, _, revision = name.partition("@")
    check_name(name)
    client = _client()
    place = cache / name.replace("/", "--")
    try:
        found = str(client.HfApi().model_info(name, revision=revision or None).sha)
        folder = place / found
        if not is_whole(folder):
            client.snapshot_download(name, revision=found, local_dir=folder, allow_patterns=LOADED)
    except Exception as error:  # as above
        known = [path for path in place.glob("*") if is_whole(path)]
        if revision:
            known = [path for path in known if path.name.startswith(revision)]
        if not known or type(error).__name__ == "RepositoryNotFoundError":
            raise _refused(f"download {PREFIX}{name}", error) from error
        folder = max(known, key=lambda path: path.stat().st_mtime)
        print(f"note: no hub; {PREFIX}{name} as downloaded before", file=sys.stderr, flush=True)
    if not is_shared(folder):
        raise InputError(f"{PREFIX}{name} was not written by wsis.share; give another model")
    return folder


def _client() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"{PREFIX}NAME needs the package huggingface_hub: pip install 'wsis[hub]'"
        ) from error


def _refused(what: str, error: Exception) -> InputError:
    """Return what to say of an error of the client."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return InputError(f"cannot {what}: HF_HUB_OFFLINE is set; unset it, or share a folder")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "RepositoryNotFoundError" in kinds or status in (401, 403, 404):
        return InputError(
            f"cannot {what}: no such model, or not yours; check the name, or run `hf auth login`"
        )
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return InputError(f"cannot {what}: {reason}; check the network, or share a folder")
