"""Progress of generation in an SQLite file; a repeated command does only what is missing."""

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
    """A store of results under all that they depend on; made by `open_progress`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def recall(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Any],
        valid: Callable[[Any], bool] = lambda value: True,
    ) -> Any:
        """Return the stored json value of `key`; make and store it if there is no valid one."""
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
    """Open the file, or create it.

    Raises:
        InputError: the file cannot be written, is damaged or has other content.
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
