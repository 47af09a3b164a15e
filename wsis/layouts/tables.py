"""Tags in a table, as spreadsheets and scripts write it: CSV of any dialect.

A line names an image and its tags: in one cell, apart by `;`, `|` or `,`; in a cell each; or in
columns of 0 and 1 under the names of the classes. Lines of one image are joined. The first line is
a heading if it names no image.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, read_text
from wsis.layouts.pictures import is_picture_name
from wsis.layouts.text import counted, tidy

__all__ = ["LAYOUT", "Table", "column_of", "read_table", "read_tag_table"]

DELIMITERS = (",", ";", "\t", "|")
# fmt: off
FILE = frozenset({
    "file", "filename", "filenames", "filepath", "image", "images", "imagefile", "imagefilename",
    "imagename", "imagepath", "imageid", "img", "imgname", "imgpath", "path", "photo", "photoname",
    "picture",
})
TAGS = frozenset({
    "tag", "tags", "label", "labels", "class", "classes", "classname", "category", "categories",
    "categoryname", "target",
})
# fmt: on
_BEGINNING = 50  # rows that tell the dialect
_YES = {"1", "1.0", "true", "yes", "x", "wahr", "vrai", "verdadero", "vero"}
_NO = {"0", "0.0", "false", "no", "", "falsch", "faux", "falso"}
_NUMBERING = frozenset({"id", "index", "split", "fold", "train", "test", "valid", "val", "isvalid"})
"""Names of columns that are no classes, though they may hold 0 and 1."""


class Table(NamedTuple):
    """A table as text."""

    heading: list[str]
    """Names of the columns; empty if there is no heading."""
    rows: list[tuple[int, list[str]]]
    """Number of the line, and its cells without blanks around them."""


def read_table(path: Path) -> Table:
    """Read a table of any dialect; empty lines are left out.

    Raises:
        InputError: it is no text.
    """
    text = read_text(path)
    stated = re.match(r'\s*"?sep=(.)"?\r?\n', text)  # Excel's own way to state the delimiter
    delimiter = stated[1] if stated else _delimiter(_lines(text)[:_BEGINNING])
    limit = csv.field_size_limit(len(text) + 1)  # masks fill cells of any length
    try:
        reader = csv.reader(_lines(text), delimiter=delimiter, skipinitialspace=True)
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: {error}; save it as CSV with quotes around texts") from error
    finally:
        csv.field_size_limit(limit)
    rows = [(number, row) for number, row in cells[bool(stated) :] if any(row)]
    has_heading = bool(rows) and not any(map(is_picture_name, rows[0][1])) and _is_heading(rows)
    return Table(rows[0][1], rows[1:]) if has_heading else Table([], rows)


def _lines(text: str) -> list[str]:
    """Return the lines with their ends, of any system; other separators are part of a text."""
    return list(io.StringIO(text, newline=""))


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter that leaves most cells that are the name of an image, or a heading."""

    def fitting(delimiter: str) -> tuple[int, int]:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error:
            return 0, 0
        rows = [row for row in rows if len(row) > 1]
        named = sum(any(map(_is_bare_name, row)) for row in rows)
        return named + bool(rows and column_of(rows[0], FILE) is not None), len(rows)

    return max(DELIMITERS, key=fitting)  # the first of equals


def _is_bare_name(cell: str) -> bool:
    """Return whether a cell is the name of an image and nothing more."""
    return is_picture_name(cell) and not re.search(r"[;|\t]|\.\w+,", cell)


def _is_heading(rows: Sequence[tuple[int, list[str]]]) -> bool:
    first = rows[0][1]
    named = any(is_picture_name(cell) for _, row in rows[1:_BEGINNING] for cell in row)
    return named or column_of(first, FILE | TAGS) is not None


def column_of(heading: Sequence[str], names: frozenset[str]) -> int | None:
    """Return the first column with one of the names, whatever its case, blanks and signs."""
    return next((n for n, name in enumerate(heading) if _plain(name) in names), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalpha())


def _matches(source: Source) -> bool:
    if source.suffix not in (".csv", ".tsv", ".txt"):
        return False
    try:
        table = read_table(source.path)
    except InputError:
        return source.split == "train" and source.path.stem == "labels"
    return (
        column_of(table.heading, FILE) is not None
        or any(is_picture_name(cell) for _, row in table.rows[:_BEGINNING] for cell in row)
        or source.path.stem in ("labels", "val")
    )


def _read(source: Source) -> Labels:
    return read_tag_table(source.path, source.classes)


def read_tag_table(path: Path, classes: Sequence[str] = ()) -> Labels:
    """Read a table of tags.

    Args:
        path: the file.
        classes: names in which commas and semicolons separate nothing.

    Raises:
        InputError: it is no text, or does not tell which columns are file and tags.
    """
    table = read_table(path)
    place = _file_column(table)
    if not table.heading:
        _refuse_numbers(table, place, path)
    columns = _one_hot(table, place)
    if columns:
        return Labels(_photos_of_one_hot(table, path, place, columns), path.parent)
    ignored = _ignored_columns(table, place, path)
    photos: list[Photo] = []
    split: dict[str, list[str]] = {}
    for number, row in table.rows:
        cells = [cell for n, cell in enumerate(row) if n != place and n not in ignored]
        tags = [tag for cell in cells for tag in split_tags(cell, classes)]
        split |= {cell: split_tags(cell, classes) for cell in cells if "," in cell}
        photos.append(Photo(row[place] if place < len(row) else "", f"{path}:{number}", tags))
    notes = [f"columns left out: {', '.join(ignored.values())}"] if ignored else []
    split = {cell: tags for cell, tags in split.items() if len(tags) > 1}
    if split:
        cell, tags = next(iter(split.items()))
        notes.append(
            f'{counted(len(split), "cell")} split at commas, such as "{cell}" into {len(tags)} '
            "tags; name a class that has a comma in --data.classes"
        )
    return Labels(photos, path.parent, notes=notes)


def split_tags(cell: str, classes: Sequence[str] = ()) -> list[str]:
    """Return the tags in a cell, apart by `;`, `|`, `,` or in lines; all of it if it is a class.

    A list as Python or JSON writes it, `['cat', 'dog']`, has the tags without quotes.
    """
    if tidy(cell) in classes:
        return [cell]
    if cell.startswith("[") and cell.endswith("]"):
        cell = re.sub(r"""(^|,)\s*(['"])(.*?)\2\s*(?=,|$)""", r"\1\3", cell[1:-1])
    return [tag for tag in map(tidy, re.split(r"[;|,\n\r]", cell)) if tag]


def _file_column(table: Table) -> int:
    """Return the column that names the images: by its heading, else by what is in it."""
    named = column_of(table.heading, FILE)
    if named is not None:
        return named
    counts = [0]
    for _, row in table.rows[:_BEGINNING]:
        counts += [0] * (len(row) - len(counts))
        for n, cell in enumerate(row):
            counts[n] += is_picture_name(cell)
    if max(counts):
        return counts.index(max(counts))
    return 1 if column_of(table.heading[:1], TAGS) == 0 else 0


def _one_hot(table: Table, place: int) -> dict[int, str]:
    """Return the class of each column of 0 and 1; empty if there are other columns."""
    named = {n: name for n, name in enumerate(table.heading) if n != place and name}
    columns = {n: name for n, name in named.items() if _plain(name) not in _NUMBERING}
    if not table.rows or any(_plain(name) in TAGS for name in columns.values()):
        return {}
    cells = [row[n].lower() for _, row in table.rows for n in columns if n < len(row)]
    marked = {cell for cell in cells if cell}
    return columns if marked and marked <= _YES | _NO else {}


def _photos_of_one_hot(
    table: Table, path: Path, place: int, columns: dict[int, str]
) -> list[Photo]:
    photos = []
    for number, row in table.rows:
        tags = [name for n, name in columns.items() if n < len(row) and row[n].lower() in _YES]
        photos.append(Photo(row[place], f"{path}:{number}", tags))
    return photos


def _ignored_columns(table: Table, place: int, path: Path) -> dict[int, str]:
    """Return the columns that are neither file nor tags; those without a name after it are tags.

    Raises:
        InputError: no name says which columns are the tags.
    """
    numbering = {n: "the first" for n in range(place) if table.heading and not table.heading[n]}
    others = {n: name for n, name in enumerate(table.heading) if n != place and name}
    ignored = {n: name for n, name in others.items() if _plain(name) not in TAGS}
    if len(ignored) == len(others) > 1:
        raise InputError(
            f"{path} has the columns {', '.join(others.values())}, any of which may be the tags; "
            "call that column tags"
        )
    return numbering | (ignored if len(ignored) < len(others) else {})


def _refuse_numbers(table: Table, place: int, path: Path) -> None:
    """Raise InputError for columns of numbers without a heading: boxes, or 0 and 1 of classes."""
    for number, row in table.rows:
        cells = [cell for n, cell in enumerate(row) if n != place and cell]
        numbers = [cell for cell in cells if re.fullmatch(r"-?\d+(\.\d+)?", cell)]
        if len(numbers) >= 2:
            raise InputError(
                f"{path}:{number}: {', '.join(cells)[:60]} are numbers; write a heading, such as "
                "file,cat,dog over 0 and 1 or file,class,xmin,ymin,xmax,ymax over boxes"
            )


LAYOUT = Layout("table", "labels.csv", _matches, _read)
