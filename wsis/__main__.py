"""All verbs under one name: `wsis fit --model pdsl` is `python -m wsis.fit --model pdsl`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from wsis.registry import description, suggest

__all__ = ["main"]

VERBS = {
    "fit": "fit",
    "test": "test",
    "predict": "predict",
    "label": "label",
    "serve": "serve.__main__",
    "propose": "propose",
    "simulate": "simulate",
    "compare": "compare",
    "ablate": "ablate",
    "share": "share",
    "export": "export",
    "generate": "generate.__main__",
}
"""Verbs and their modules, in the order in which one meets them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that the first word names with the words after it; list all verbs without."""
    verb, *words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: wsis VERB [--SETTING VALUE ...]\n")
        for name in VERBS:
            print(f"  {name:<10}{_sentence(name)}")
        print("\nsettings: wsis VERB --help")
    elif verb in VERBS:
        importlib.import_module(f"wsis.{VERBS[verb]}").main(words)
    else:
        known = ", ".join(VERBS)
        print(f"error: no verb '{verb}'{suggest(verb, VERBS)} (have: {known})", file=sys.stderr)
        sys.exit(2)


def _sentence(verb: str) -> str:
    """Return what a verb does, from the docstring of its module, which is not imported."""
    path = Path(__file__).parent.joinpath(*VERBS[verb].split(".")).with_suffix(".py")
    return description(path).partition(":")[0]


if __name__ == "__main__":
    main()
