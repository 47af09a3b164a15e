"""Parse XML of others, without document types.

Entities, which can grow to gigabytes or name other files, are declared in a document type, and no
label tool writes one. A file that has one is refused, so that the standard parser is safe.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from wsis.errors import InputError
from wsis.files import read_bytes

__all__ = ["Element", "number_of", "parse_xml", "text_of"]


def parse_xml(path: Path) -> Element:
    """Return the root element of an XML file.

    Raises:
        InputError: it cannot be read, is no XML, or declares a document type.
    """
    content = read_bytes(path)
    try:
        _refuse_document_types(content, path)
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no whole XML ({error}); export it again") from error


def _refuse_document_types(content: bytes, path: Path) -> None:
    def refuse(*_: object) -> None:
        raise InputError(f"{path} declares a document type, which labels do not need; remove it")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)


def text_of(element: Element, path: str) -> str:
    """Return the text of a descendant, or nothing if there is none."""
    return (element.findtext(path) or "").strip()


def number_of(element: Element, path: str, default: float = 0) -> float:
    """Return the number in a descendant."""
    return float(text_of(element, path) or default)
