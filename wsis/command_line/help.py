"""What `--help` prints: a setting a line, from signatures and docstrings."""

from __future__ import annotations

import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from typing import Any

from jsonargparse import DefaultHelpFormatter

from wsis import registry

__all__ = ["Help", "list_names"]

COLUMN = 42
"""Where sentences begin."""
WIDTH = 128


class Help(DefaultHelpFormatter):
    """A setting a line, `--name default  Sentence.`, under the heading of its group."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, width=2000)  # type: ignore[no-untyped-call]  # usage in one line

    def format_help(self) -> str:
        """Join all parts without blank lines."""
        lines = super().format_help().splitlines()
        return "".join(f"{line}\n" for line in lines if line.strip())

    def start_section(self, heading: str | None) -> None:
        """Begin a group; its heading is the first sentence of a docstring."""
        super().start_section(_capital(heading or "").rstrip("."))

    def _format_action(self, action: Action) -> str:
        flags = [flag for flag in action.option_strings if flag.startswith("--")]
        if action.default is SUPPRESS or flags[:1] in (["--config"], ["--print_config"]):
            return ""
        default = "(required)" if action.required and flags else self._default(action)
        left = f"  {flags[0] if flags else action.dest} {default}".ljust(COLUMN - 2) + "  "
        choices = str(action.metavar or "")
        shown = f" {choices}" if choices.startswith("{") and choices != "{true,false}" else ""
        sentence = _capital(" ".join((action.help or "").split())) + shown
        return self._wrap(left + sentence)

    def _default(self, action: Action) -> str:
        if not action.option_strings:
            return ""
        return "null" if action.default is None else str(action.default)

    def _wrap(self, line: str) -> str:
        lines = textwrap.wrap(line, WIDTH, subsequent_indent=" " * COLUMN, break_on_hyphens=False)
        return "".join(f"{part}\n" for part in lines)


def list_names(verb: str, kinds: Sequence[str]) -> str:
    """Return the help of a verb whose model is not chosen yet: names, each with a sentence."""
    usage = f"usage: python -m wsis.{verb} --model NAME [--data NAME] [--SETTING VALUE ...]"
    lines = [f"{usage} [--config FILE ...]"]
    for kind in kinds:
        lines += ["", f"--{kind} NAME, one of:"]
        lines += [f"  {name:<18}{registry.summary(kind, name)}" for name in registry.names(kind)]
    lines += ["", f"settings: python -m wsis.{verb} --model NAME --help"]
    lines += ["more: --help data, --help trainer, --help wandb"]
    return "\n".join(lines)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
