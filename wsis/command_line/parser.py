"""One command line for every verb: LightningCLI with short names, layered settings, short help and one-line errors."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import restricted_number_type
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

from wsis import registry
from wsis.command_line.settings import (
    Config,
    arrange,
    as_words,
    check_known,
    flatten,
    layer,
    read_config,
    recipe,
    spelled,
)
from wsis.errors import InputError
from wsis.files import whole
from wsis.runs.loggers import CSV, WandB
from wsis.runs.run import rank

__all__ = ["CLI", "Help", "new_trainer", "parse", "run_folder", "write_settings"]

TRAINER = MappingProxyType(
    {
        "devices": "1",
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    }
)
"""Where our Trainer departs from Lightning's."""
STEPS = 1000
"""How long to train where neither a recipe nor the user says: minutes on a laptop."""
SEED = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
LINKED = ("num_classes", "num_stuff")
"""Model arguments that are the data's to say."""


class Help(DefaultHelpFormatter):
    """A setting a line: `--name default  sentence`."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=100, width=2000)  # type: ignore[no-untyped-call]

    def format_help(self) -> str:
        """The short form."""
        return _short(super().format_help()) + "\n"


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Parse the arguments of a verb that makes no model or data.

    Raises:
        InputError: an unknown, missing or ill-typed argument.
    """
    try:
        parsed = parser.parse_args(
            [spelled(word) for word in (sys.argv[1:] if argv is None else argv)]
        )
    except ArgumentError as error:
        raise InputError(f"{_one_line(str(error))}; see {parser.prog} --help") from error
    return {key: value for key, value in parsed.as_dict().items() if key != "config"}


def new_trainer(**settings: Any) -> pl.Trainer:
    """Make Lightning's Trainer.

    Raises:
        InputError: settings that it refuses, such as an accelerator that there is not.
    """
    try:
        return pl.Trainer(**settings)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the Trainer refuses its settings: {' '.join(str(error).split())}"
        ) from error


class CLI(LightningCLI):
    """Parses one verb's arguments; holds `.model`, `.datamodule`, `.config`, and makes trainers.

    Args:
        verb: What follows `python -m wsis.`.
        argv: The words after it; those of this process if None.
        kinds: Which classes the verb needs, of "model" and "data".
        options: Adds the verb's own settings to the parser; they are left out of the saved settings.
        default: Short names where none are given.
        files: Settings files that come before those of `--config`.

    Raises:
        InputError: an unknown name or setting, or a value of the wrong type.
    """

    def __init__(
        self,
        verb: str,
        argv: Sequence[str] | None = None,
        kinds: Sequence[str] = ("model", "data"),
        options: Callable[[LightningArgumentParser], object] = lambda parser: None,
        default: Mapping[str, str] = MappingProxyType({"data": "shapes"}),
        files: Sequence[Path] = (),
    ) -> None:
        self.verb, self.kinds, self.options = verb, kinds, options
        chosen, given, words = arrange(sys.argv[1:] if argv is None else argv)
        self.help, self.words = _take_help(words)
        self._choose(chosen, default, [*files, *given])
        super().__init__(
            self.classes.get("model", pl.LightningModule),
            self.classes.get("data", pl.LightningDataModule),
            run=False,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints hold plain constructor arguments, as those made from Python
            parser_kwargs={
                "prog": f"python -m wsis.{verb}",
                "usage": f"%(prog)s {' '.join(f'--{kind} NAME' for kind in kinds)} [--SETTING VALUE ...] [--config FILE ...]",
                "description": "; ".join(
                    f"--{kind}: {', '.join(registry.names(kind))}" for kind in kinds
                ),
                "formatter_class": Help,
                "allow_abbrev": False,
                "exit_on_error": False,
            },
        )

    def _choose(
        self, chosen: Mapping[str, str], default: Mapping[str, str], files: Sequence[Path]
    ) -> None:
        """Settle on classes and settings files."""
        named = {kind: name for kind, name in default.items() if kind in self.kinds}
        for path in files:
            for kind in self.kinds:
                section = read_config(path).get(kind) or {}
                named[kind] = section.get("class_path", named.get(kind, ""))
        named |= {kind: name for kind, name in chosen.items() if kind in self.kinds}
        named = {kind: name for kind, name in named.items() if name}
        missing = [kind for kind in self.kinds if kind not in named]
        if missing and self.help is None:
            raise InputError(
                f"give --{missing[0]}, one of: {', '.join(registry.names(missing[0]))}"
            )
        self.paths = {kind: registry.class_path(kind, name) for kind, name in named.items()}
        self.classes = {kind: registry.find(kind, path) for kind, path in self.paths.items()}
        self.names = {kind: registry.short_name(kind, path) for kind, path in self.paths.items()}
        self.recipe = recipe(**self.names) if len(self.names) == 2 else None
        self.files = [*([self.recipe] if self.recipe else []), *files]

    # What LightningCLI asks for, in its order

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, which LightningCLI looks for under this name."""
        parser.add_argument(
            "--seed_everything",
            type=SEED,
            default=0,
            help="Seed of weights and of all that is random in training.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, model and data; help shows the Trainer only when asked."""
        if self.help != "settings" and "model" in self.kinds:
            parser.add_lightning_class_args(pl.Trainer, "trainer")
            parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER.items()})
        for kind in [
            kind for kind in self.kinds if kind in self.classes and self.help != "trainer"
        ]:
            parser.add_lightning_class_args(self.classes[kind], kind)
        if self.help is None and len(self.classes) == 2:
            for name in [
                name
                for name in LINKED
                if name in inspect.signature(self.classes["model"]).parameters
            ]:
                ask = partial(_ask_data, name=name, path=self.paths["data"])
                parser.link_arguments(
                    "data", f"model.{name}", compute_fn=ask, apply_on="instantiate"
                )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """W&B and the verb's own settings."""
        self.own: set[str] = set()
        if self.help != "trainer":
            if "model" in self.kinds:
                parser.add_class_arguments(WandB, "wandb")
            before = _keys(parser)
            self.options(parser)
            self.own = _keys(parser) - before

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        """Parse files and words; files become words in front of the user's, so there is one way in for every setting."""
        known = _keys(parser)
        if self.help is not None:
            self._print_help(parser, known)
        found: Config = {}
        for path in self.files:
            found |= layer(path, self.paths, known)
        words = [re.sub(r"^--(model|data)\.init_args\.", r"--\1.", word) for word in self.words]
        if re.search(r"--trainer\.logger[= ]\S+Logger\b", " ".join(words)):
            words.append(
                "--trainer.logger.save_dir=."
            )  # asked for by most; `loggers` puts the stage's folder in its place
        for word in words:
            if word.startswith("--"):
                check_known(word[2:].partition("=")[0], known)
        try:
            self.config = parser.parse_args(as_words(found) + words)
        except ArgumentError as error:
            raise InputError(_one_line(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """A run has an end."""
        if "model" not in self.kinds:
            return
        trainer = self.config.trainer
        if trainer.max_steps == -1 and trainer.max_epochs is None and trainer.max_time is None:
            trainer.max_steps = STEPS
        elif trainer.max_steps != -1 and trainer.max_epochs not in (None, -1):
            raise InputError(
                "trainer.max_steps and trainer.max_epochs are both set; add --trainer.max_steps -1 to count epochs"
            )

    def instantiate_classes(self) -> None:
        """Make model and data; the Trainer waits for its stage."""
        config = self.config.clone()
        if "model" in self.kinds:
            config.trainer.logger = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what data says of itself is shown
            try:
                self.config_init = self.parser.instantiate_classes(config)
            except ValueError as error:  # jsonargparse wraps what a linked setting raises
                if isinstance(error.__cause__, InputError):
                    raise error.__cause__ from None
                raise
        self.model, self.datamodule = self.config_init.get("model"), self.config_init.get("data")

    # What a verb asks for

    def settings(self) -> Config:
        """What the run was asked for, as a settings file has it: where it is written is not part of it."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, format="yaml"))
        config = {
            key: value for key, value in config.items() if key not in self.own and key != "config"
        }
        for kind, path in self.paths.items():
            config[kind] = {"class_path": path, "init_args": config.get(kind) or {}}
        return config

    def make_trainer(
        self, folder: Path, callbacks: Sequence[Callback] = (), **trainer: Any
    ) -> pl.Trainer:
        """A trainer that writes to `folder`; the given settings win over the command line's."""
        given = copy.deepcopy(
            dict(self.config_init.trainer)
        )  # callbacks hold state: no two trainers share one
        given |= trainer | {"default_root_dir": str(folder)}
        if isinstance(given["val_check_interval"], int):  # counted in batches over the whole run
            given["check_val_every_n_epoch"] = None
        elif given["val_check_interval"] is None:  # only at the end, which `Run.fit` sees to
            given["check_val_every_n_epoch"] = sys.maxsize
        if given["enable_progress_bar"] is None:
            given["enable_progress_bar"] = sys.stderr.isatty()
        mine = {**self.settings(), "trainer": self.settings()["trainer"] | trainer}
        given["callbacks"] = [*(given["callbacks"] or []), *callbacks, _Record(folder, mine)]
        given["logger"] = self.loggers(folder)
        return new_trainer(**given)

    def loggers(self, folder: Path) -> list[Logger]:
        """The CSV file, W&B if a project is named, and those of `--trainer.logger`, all in `folder`."""
        loggers: list[Logger] = [CSV(folder)]
        wandb: WandB = self.config_init.wandb
        if wandb.project:
            loggers.append(wandb.logger(folder.parent, folder.name))
        asked = self.config.trainer.logger
        for spec in asked if isinstance(asked, list) else [asked]:
            if spec not in (None, True, False):
                module, _, name = spec.class_path.rpartition(".")
                place = {"save_dir": str(folder)}
                if spec.init_args.get("name") == "lightning_logs":
                    place |= {"name": "", "version": ""}
                loggers.append(
                    getattr(importlib.import_module(module), name)(**(dict(spec.init_args) | place))
                )
        return loggers

    def _print_help(self, parser: LightningArgumentParser, known: set[str]) -> None:
        """Names where no model is chosen, else the settings, with the recipe's values as defaults; ends the program."""
        if self.help == "settings" and "model" in self.kinds and "model" not in self.classes:
            print(
                f"usage: python -m wsis.{self.verb} --model NAME [--data NAME] [--SETTING VALUE ...] [--config FILE ...]"
            )
            for kind in self.kinds:
                print(f"\n--{kind} NAME, one of:")
                print(
                    "\n".join(
                        f"  {name:<14}{registry.summary(kind, name)}"
                        for name in registry.names(kind)
                    )
                )
            print(
                f"\nsettings: python -m wsis.{self.verb} --model NAME --help; of the Trainer: --help trainer"
            )
        else:
            for path in self.files:
                values = {
                    k: v for k, v in dict(flatten(read_config(path), known)).items() if k in known
                }
                parser.set_defaults(values)
            print(parser.format_help(), end="")
        raise SystemExit(0)


class _Record(Callback):
    """The resolved settings go to the stage's folder, and to every logger, as training begins."""

    def __init__(self, folder: Path, settings: Config) -> None:
        self.folder, self.settings = folder, settings

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            write_settings(self.folder / "config.yaml", self.settings)
            for logger in trainer.loggers:
                logger.log_hyperparams(self.settings)


def write_settings(path: Path, settings: Config) -> None:
    """Save settings as a file that `--config` takes."""
    with whole(path) as scratch:
        scratch.write_text(
            yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def _ask_data(data: Any, name: str, path: str) -> Any:
    if not hasattr(data, name):
        raise InputError(f"data {path} does not say its `{name}`, which this model asks for")
    return getattr(data, name)


def _keys(parser: LightningArgumentParser) -> set[str]:
    return set(parser.get_defaults(skip_validation=True).keys())


def _short(text: str) -> str:
    """Jsonargparse's help with one setting a line: `--name default  sentence`, and without how to print help."""
    lines = []
    for line in text.splitlines():
        setting = re.match(r"  (?:-c CONFIG, )?(--\S+)(?: (\S+)(?: \[\S+ \.\.\.\])?)? +(.*)", line)
        if setting is None or setting[1] == "--config":
            plain = re.sub(r" \((?:required, )?type: .*\)$", "", line)
            lines += [plain] if line.strip() and not re.match(r"options:|  -", line) else []
        elif setting[2] != "CONFIG" and setting[1] != "--print_config":
            said = re.fullmatch(
                r"(.*?) ?\((?:required, )?(?:type: .*?)?(?:, )?(?:default: (.*))?\)", setting[3]
            )
            sentence, default = (said[1], said[2] or "") if said else (setting[3], "")
            if (setting[2] or "").startswith("{") and setting[2] != "{true,false}":
                sentence += f" {setting[2]}"
            left = f"  {setting[1]} {default}"
            first = " " * (42 - len(left)) if len(left) < 42 else "  "
            lines += textwrap.wrap(
                left + first + sentence, 128, subsequent_indent=" " * 42, break_on_hyphens=False
            )
    return "\n".join(lines)


def _take_help(words: list[str]) -> tuple[str | None, list[str]]:
    """What help is asked for ("settings", "trainer" or None), and the words without it."""
    for i, word in enumerate(words):
        if word.partition("=")[0] in ("-h", "--help"):
            topic = word.partition("=")[2] or "".join(words[i + 1 : i + 2])
            return ("trainer" if topic == "trainer" else "settings"), []
    return None, words


def _one_line(message: str) -> str:
    """The gist of what jsonargparse says about a value."""
    key = re.search(r'(?:Parser key|Key|Option) ["\']([\w.]+)["\']', message)
    union = re.search(r"Subtypes: \[(.*)\]", message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if key and "required" in message:
        return f"give --{key[1]}"
    if (
        key
        and not union
        and (expected := re.search(r"Expected an? (.*?)\. Got value", message))
        and value
    ):
        return (
            f"--{key[1]} {value[1]}: expected {expected[1]}".replace("<class ", "")
            .replace(">", "")
            .replace("typing.", "")
        )
    if key and (limit := re.search(r"Not of type \w+: (.*)", message)):
        return f"--{key[1]}: {limit[1]}"
    if key and union and value:
        return f"--{key[1]} {value[1]}: expected one of {union[1][:200]}".replace(
            "<class ", ""
        ).replace(">", "")
    return " ".join(message.split())[:300]


def run_folder(model: str, data: str, given: Path | None) -> Path:
    """The folder of a new run, the same on every rank; `runs/MODEL/DATA/TIME` if none is given.

    Raises:
        InputError: the ranks were started by another program and cannot agree on a time.
    """
    if given is not None:
        return given
    if rank():
        if "WSIS_RUN_DIR" not in os.environ:
            raise InputError(
                "several processes started from outside need one folder: give --run_dir"
            )
        return Path(os.environ["WSIS_RUN_DIR"])
    folder = Path("runs", model, data, f"{datetime.now():%Y%m%d-%H%M%S}")
    while folder.exists():  # two runs within a second
        folder = folder.with_name(f"{folder.name}-2")
    return folder
