"""Where a shared model is: a folder, an archive, a URL or a name on the hub, as a local folder."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import urlsplit

from wsis.errors import InputError
from wsis.files import cache_folder
from wsis.fingerprint import digest
from wsis.sharing import hub
from wsis.sharing.archives import SUFFIXES, Limited, holds_archive, is_archive, unpack
from wsis.sharing.folder import WEIGHTS, check_shared, is_shared, is_whole, sha256

__all__ = ["find_run", "weights_file"]

MOST_BYTES = 32 * 2**30
"""Longest download."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


def find_run(place: str | os.PathLike[str]) -> Path:
    """Return the folder of a run, or of a shared model that is fetched if need be and checked.

    Args:
        place: the folder; or an archive of a shared one, an https URL of an archive, or
            `hub:USER/NAME`, also with `@REVISION`.

    Raises:
        InputError: it cannot be fetched, or its files are not those that were shared.
    """
    given = os.fspath(place)
    if given.startswith(hub.PREFIX):
        folder = hub.download(given.removeprefix(hub.PREFIX), _cached("hub"))
    elif "://" in given:
        folder = _fetched(given)
    elif is_archive(given) and Path(given).is_file():
        folder = _cached(sha256(Path(given))[:16])
        if not is_whole(folder):
            unpack(Path(given), folder, given)
    else:
        folder = Path(given)
    if is_shared(folder):
        check_shared(folder, given)
    return folder


def weights_file(place: str | os.PathLike[str]) -> Path:
    """Return a file of weights: that of a shared model, wherever it is, else the given one.

    Raises:
        InputError: as `find_run`.
    """
    given = os.fspath(place)
    elsewhere = given.startswith(hub.PREFIX) or "://" in given
    if elsewhere or is_shared(Path(given)) or holds_archive(Path(given)):
        return find_run(given) / WEIGHTS
    return Path(given)


def _cached(name: str) -> Path:
    return cache_folder() / "shared" / name


def _fetched(url: str) -> Path:
    """Return the folder of the archive at a URL, which is downloaded once."""
    _check_url(url)
    if not is_archive(urlsplit(url).path):
        raise InputError(f"{url} is no archive; give the URL of a {', '.join(SUFFIXES)} file")
    folder = _cached(digest(url))
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
            archive = Path(scratch, Path(urlsplit(url).path).name)
            _download(url, archive)
            unpack(archive, folder, url)
    return folder


def _check_url(url: str) -> None:
    """Raise InputError unless a URL is https, or http of this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise InputError(f"{url}: only https is fetched; give an https URL, or a file")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects, each of which must be to https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path) -> None:
    print(f"downloading {url}", file=sys.stderr, flush=True)
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(url, timeout=60) as source, open(path, "wb") as target:
            length = int(source.headers.get("Content-Length") or 0)
            told = f"{url} does not end; download it in another way"
            shutil.copyfileobj(Limited(source, MOST_BYTES, told), target)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: {error.code} {error.reason}; check the address") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise InputError(
            f"cannot download {url}: {reason}; check the network, or give a file"
        ) from error
    if length and path.stat().st_size != length:
        raise InputError(f"{url} broke off after {path.stat().st_size} of {length} bytes; repeat")
