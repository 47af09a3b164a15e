"""A page of sections in one HTML file that needs no network; a script draws its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from wsis.files import atomic_write
from wsis.images import draw
from wsis.metrics.errors import KINDS

__all__ = ["Section", "colour_of_row", "gallery_section", "page_data", "write_document"]

COLOURS = (
    *("#2b6cb0", "#d97706", "#2f855a", "#b83280", "#6b46c1"),
    *("#0e7490", "#c53030", "#8a6d1f", "#4a5568", "#65a30d"),
)
"""Colours of rows."""


class Section(NamedTuple):
    """A part of a page with a heading."""

    name: str
    """Its id, which links lead to."""
    title: str
    note: str
    """A line of text below the title."""
    body: str
    """HTML."""


def write_document(
    path: Path,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    data: Mapping[str, Any],
    refresh: int = 0,
) -> None:
    """Write a page, whole or not at all.

    Args:
        path: of the page.
        title: its heading, as text.
        subtitle: a line of text below it.
        sections: its parts.
        data: what its script reads, from `page_data`.
        refresh: seconds after which a browser loads the page again; 0 for never.

    Raises:
        InputError: the folder cannot be written.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    parts = {
        "refresh": again,
        "title": escape(title),
        "subtitle": escape(subtitle),
        "links": " ".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections),
        "sections": "".join(map(_section, sections)),
        "style": _asset("page.css"),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "script": _asset("page.js"),
    }
    page = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], _asset("page.html"))
    with atomic_write(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    name, title, note, body = section
    soft = f'<p class="soft">{escape(note)}</p>' if note else ""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{soft}{body}</section>'


def gallery_section(note: str, pictures: int) -> Section:
    """Return the section of the pictures, which the script fills."""
    return Section("gallery", "Pictures", note, _asset("gallery.html") if pictures else "")


def page_data(
    rows: Sequence[str], classes: Sequence[str], things: int, gallery: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the script reads of every page.

    Args:
        rows: names of methods, which have colours in this order.
        classes: names, things first.
        things: number of thing classes.
        gallery: from `make_gallery`.
    """
    return {
        "rows": [{"name": name, "colour": colour_of_row(r)} for r, name in enumerate(rows)],
        "classes": classes,
        "things": things,
        "colours": [_shades(c, things) for c in range(len(classes))],
        "kinds": KINDS,
        **gallery,
    }


def colour_of_row(row: int) -> str:
    """Return the colour of a row."""
    return COLOURS[row % len(COLOURS)]


def _shades(label: int, things: int) -> list[str]:
    """Return four colours of a class, for neighbouring objects."""
    shades = [draw.stuff_colour(label - things)] * 4
    if label < things:
        shades = [draw.colour(label, k) for k in range(4)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shades]


def _asset(name: str) -> str:
    return (files("wsis.reports") / name).read_text(encoding="utf-8")
