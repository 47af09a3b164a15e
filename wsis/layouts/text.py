"""Text as people and programs write it: encodings, and names that look the same."""

from __future__ import annotations

import codecs
import unicodedata

__all__ = ["counted", "decode", "key_of", "tidy"]


def tidy(name: str) -> str:
    """Return a name composed (NFC), with single blanks and none around it.

    macOS writes decomposed letters; spreadsheets and web pages write blanks of other kinds, some of
    no width.
    """
    seen = name.translate(dict.fromkeys((0x200B, 0x2060, 0xFEFF)))
    return unicodedata.normalize("NFC", " ".join(seen.split()))


def key_of(name: str) -> str:
    """Return what file names share that differ in case or in the spelling of accents alone."""
    return unicodedata.normalize("NFC", name.casefold())


def decode(content: bytes) -> str:
    """Decode text: UTF-16 and UTF-8 with or without a mark, else Windows-1252, as Excel writes.

    Raises:
        ValueError: it is none of these, or has zero bytes.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    elif content[1:2] == b"\0":  # Windows' "Unicode" without a mark
        text = content.decode("utf-16-le")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
    if "\0" in text:
        raise ValueError("it has zero bytes")
    return text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
