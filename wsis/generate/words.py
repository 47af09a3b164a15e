"""Rule-based substitution of words for the target classes in captions (EM-Paste, section 3.2)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

from wsis.generate._lexicon import GROUPS, OTHERS

__all__ = ["plurals", "prompts", "substitute", "synonyms"]

_IRREGULAR = {
    "person": "people", "child": "children", "mouse": "mice", "goose": "geese", "ox": "oxen",
    "foot": "feet", "tooth": "teeth", "sheep": "sheep", "cattle": "cattle", "aircraft": "aircraft",
    "people": "people", "scissors": "scissors", "skis": "skis", "broccoli": "broccoli",
    "luggage": "luggage",
}  # fmt: skip


def substitute(caption: str, classes: Sequence[str]) -> str:
    """Replace every word for one of `classes` by another object.

    "an old man on two horses" becomes "an old rock on two barrels". Synonyms, plurals and compound
    names are matched, the longest first; a compound that names none of the classes is left as it
    is, such as "hot dog" if only dogs are a class. The same caption always gets the same objects.
    """
    pattern, plural, others = _rule(tuple(classes))
    place = zlib.crc32(caption.encode())

    def replacement(match: re.Match[str]) -> str:
        nonlocal place
        article, word = match[1] or "", match[2]
        many = plural.get(_plain(word))
        if many is None:
            return match[0]
        place += 1
        new = others[place % len(others)]
        new = plurals(new)[0] if many else new
        new = new.capitalize() if word[0].isupper() else new
        return article.replace("n", "", 1).replace("N", "", 1) + new

    return pattern.sub(replacement, caption)


def synonyms(name: str) -> tuple[str, ...]:
    """Return words for a class, the plain one first: `tvmonitor` -> tv, television, ...

    An unknown class has its name alone.
    """
    plain = _plain(name)
    groups = [group for group in GROUPS if plain in map(_plain, group)]
    words = dict.fromkeys(chain.from_iterable(groups))
    return tuple(words) or (re.sub(r"[\s_]+", " ", name).strip(),)


def prompts(classes: Iterable[str]) -> list[str]:
    """Return the texts that CLIP compares pictures with: "a photo of a tv" for `tvmonitor`."""
    words = [synonyms(name)[0] for name in classes]
    return [f"a photo of {'an' if word[:1].lower() in 'aeiou' else 'a'} {word}" for word in words]


def plurals(phrase: str) -> tuple[str, ...]:
    """Return plurals of an English noun or compound, the usual one first."""
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
    """Return a phrase in lower case without separators between words, for comparison."""
    return re.sub(r"[\s_-]+", "", phrase.casefold())


@lru_cache(maxsize=8)
def _rule(classes: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, bool], list[str]]:
    """Return the rule of substitution for target classes.

    Returns:
        The pattern of an article and a phrase; whether each target phrase is a plural; and the
        objects to substitute.
    """
    names = [name for name in classes if _plain(name)]
    words = chain.from_iterable((name, *synonyms(name)) for name in names)
    targets = list(dict.fromkeys(words))
    compounds = [word for group in GROUPS for word in group if " " in word]
    plural = {_plain(form): True for word in targets for form in plurals(word)}
    plural |= {_plain(word): False for word in targets}
    forms = {form for word in [*targets, *compounds] for form in (word, *plurals(word))}
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    parts = [re.split(r"[\s_-]+", form.strip()) for form in longest_first]
    phrases = "|".join(r"[\s_-]*".join(map(re.escape, words)) for words in parts)
    pattern = re.compile(rf"(?<!\w)(an\s+)?({phrases})(?!\w)", re.IGNORECASE)
    taken = {word.lower() for form in forms for word in re.split(r"[\s_-]+", form)}
    others = [word for word in OTHERS if not {word, *plurals(word)} & taken]
    return pattern, plural, others or ["thing"]
