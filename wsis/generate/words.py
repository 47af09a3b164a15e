"""Object words of the target classes are substituted in captions, by rule (EM-Paste, section 3.2)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from wsis.generate._lexicon import GROUPS, OTHERS

__all__ = ["plurals", "prompts", "substitute", "synonyms"]

_IRREGULAR = {
    "person": "people", "child": "children", "mouse": "mice", "goose": "geese", "ox": "oxen", "foot": "feet", "tooth": "teeth",
    "sheep": "sheep", "cattle": "cattle", "aircraft": "aircraft", "people": "people", "scissors": "scissors", "skis": "skis",
    "broccoli": "broccoli", "luggage": "luggage",
}  # fmt: skip


def substitute(caption: str, classes: Sequence[str]) -> str:
    """Put another object in place of every word for one of `classes`: "an old man on two horses", "an old rock on two barrels".

    Synonyms, plurals and names of several words are found, the longest first; a name of several
    words that is of none of the classes is left whole, as the hot dog is where dogs are a class.
    The same caption always gets the same objects.
    """
    pattern, plural, others = _rule(tuple(classes))
    place = zlib.crc32(caption.encode())

    def other(found: re.Match[str]) -> str:
        nonlocal place
        article, word = found[1] or "", found[2]
        many = plural.get(_plain(word))
        if many is None:
            return found[0]
        place += 1
        new = others[place % len(others)]
        new = plurals(new)[0] if many else new
        return article.replace("n", "", 1).replace("N", "", 1) + (
            new.capitalize() if word[0].isupper() else new
        )

    return pattern.sub(other, caption)


def synonyms(name: str) -> tuple[str, ...]:
    """Words for a class, the plain one first: `tvmonitor` -> tv, television, ...; the name alone for an unknown class."""
    plain = _plain(name)
    found = [word for group in GROUPS if plain in map(_plain, group) for word in group]
    return tuple(dict.fromkeys(found)) or (re.sub(r"[\s_]+", " ", name).strip(),)


def prompts(classes: Iterable[str]) -> list[str]:
    """What CLIP compares pictures with: "a photo of a tv" for `tvmonitor`."""
    words = [synonyms(name)[0] for name in classes]
    return [f"a photo of {'an' if word[:1].lower() in 'aeiou' else 'a'} {word}" for word in words]


def plurals(phrase: str) -> tuple[str, ...]:
    """Plurals of an English noun, of the last word where there are several; the usual one first."""
    start, gap, noun = phrase.rpartition(" ")
    lower = noun.lower()
    if lower in _IRREGULAR:
        forms = [_IRREGULAR[lower]]
    elif lower.endswith("man") and lower != "human":
        forms = [noun[:-2] + "en"]
    elif lower.endswith(("s", "x", "z", "ch", "sh")):
        forms = [noun + "es"]
    elif lower.endswith("y") and lower[-2:-1] not in set("aeiou"):
        forms = [noun[:-1] + "ies"]
    elif lower.endswith(("fe", "lf", "af")) and not lower.endswith("ffe"):
        forms = [noun.removesuffix("e").removesuffix("f") + "ves", noun + "s"]
    elif lower.endswith("o"):
        forms = [noun + "s", noun + "es"]
    else:
        forms = [noun + "s"]
    return tuple(start + gap + form for form in forms)


def _plain(phrase: str) -> str:
    """How a phrase is looked up: lower case, without what parts its words."""
    return re.sub(r"[\s_-]+", "", phrase.casefold())


@lru_cache(maxsize=8)
def _rule(classes: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, bool], list[str]]:
    """The pattern of an article and a phrase; whether each target phrase is a plural; the objects to put in."""
    targets = list(
        dict.fromkeys(word for name in classes if _plain(name) for word in (name, *synonyms(name)))
    )
    compounds = [word for group in GROUPS for word in group if " " in word]
    plural = {_plain(form): True for word in targets for form in plurals(word)} | {
        _plain(word): False for word in targets
    }
    forms = {form for word in [*targets, *compounds] for form in (word, *plurals(word))}
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    phrases = "|".join(
        r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", form.strip())))
        for form in longest_first
    )
    pattern = re.compile(rf"(?<!\w)(an\s+)?({phrases})(?!\w)", re.IGNORECASE)
    taken = {word.lower() for form in forms for word in re.split(r"[\s_-]+", form)}
    others = [word for word in OTHERS if not {word, *plurals(word)} & taken]
    return pattern, plural, others or ["thing"]
