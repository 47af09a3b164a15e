"""What has been generated so far, in one SQLite file: a command that is repeated does what is missing and no more."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.files import database

__all__ = ["Progress", "open_progress"]


class Progress:
    """Results by all that they depend on, each stored as soon as it is there; `open_progress` makes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def recall(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Any],
        valid: Callable[[Any], bool] = lambda value: True,
    ) -> Any:
        """Give what was made for `key`, or make it now (a json value)."""
        text = json.dumps(key, sort_keys=True)
        row = self.connection.execute("SELECT value FROM made WHERE key = ?", (text,)).fetchone()
        if row and valid(value := json.loads(row[0])):
            return value
        value = make()
        with self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO made VALUES (?, ?)", (text, json.dumps(value))
            )
        return value


@contextmanager
def open_progress(path: Path) -> Iterator[Progress]:
    """Open the file, or begin it.

    Raises:
        InputError: it cannot be written, or is something else.
    """
    try:
        with database(path) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS made (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
            yield Progress(connection)
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path} is damaged or no file of wsis.generate; delete it and repeat the command"
        ) from error
