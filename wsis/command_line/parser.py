"""One command line for every verb: LightningCLI with short names and layered settings."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import restricted_number_type
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

from wsis import registry
from wsis.command_line.help import Help, list_names
from wsis.command_line.names import check_known, dotted, say_effects
from wsis.command_line.settings import (
    Config,
    arrange,
    check_words,
    folder_of_run,
    laid_over,
    read_config,
    recipe,
    replaced,
    spelled,
)
from wsis.command_line.trainers import (
    Record,
    check_loggers,
    check_numbers,
    check_precision,
    new_trainer,
)
from wsis.data.module import DataModule
from wsis.data.targets import require_labels
from wsis.errors import InputError
from wsis.method import Method
from wsis.runs.loggers import CSV, WandB
from wsis.runs.progress import Bar, Lines, title
from wsis.values import gist

__all__ = ["CLI", "Help", "overlay", "parse"]

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
"""Arguments of models that are taken from the data."""
SECTIONS = ("model", "data", "trainer", "wandb")
"""What a settings file holds besides a verb's own settings."""


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Parse the arguments of a verb that makes no model or data; without any, print its help.

    Raises:
        InputError: an unknown, missing or ill-typed argument.
    """
    words = [spelled(word) for word in (sys.argv[1:] if argv is None else argv)]
    check_words(words)
    try:
        parsed = parser.parse_args(words or ["--help"])
    except ArgumentError as error:
        raise InputError(f"{gist(error)}; see {parser.prog} --help") from error
    return {key: value for key, value in parsed.as_dict().items() if key != "config"}


def overlay(
    parser: ArgumentParser,
    config: Config,
    place: str,
    below: Namespace | None = None,
    merge: bool = False,
) -> Namespace:
    """Parse the settings of a file on top of those below.

    Args:
        parser: of classes that are chosen already.
        config: sections as `read_config` returns them.
        place: what messages call them, such as the file's path.
        below: weaker settings.
        merge: whether a group such as `pretraining` keeps the settings below that it does not name.

    Raises:
        InputError: an unknown setting, or a value of the wrong type.
    """
    plain = {}
    for section, content in config.items():
        if section in registry.KINDS and content:
            init_args = content.get("init_args") or {}
            inside = {**content, **init_args}
            content = {key: inside[key] for key in inside if key not in ("class_path", "init_args")}
        if content not in (None, {}):
            plain[section] = laid_over(below, section, content) if merge else content
    known = _keys(parser) - {"config"}
    for key in dotted(plain, known):
        check_known(key, known, f" in {place}")
    try:
        return parser.parse_object(plain, below)
    except ArgumentError as error:
        raise InputError(f"{place}: {gist(error)}") from error


class CLI(LightningCLI):
    """Parses one verb's arguments; holds `.model`, `.datamodule`, `.config`, and makes trainers.

    Args:
        verb: What follows `python -m wsis.`.
        argv: The words after it; those of this process if None. Without any, its help is printed.
        kinds: Which classes the verb needs, of "model" and "data".
        options: Adds the verb's own settings to the parser; they are not saved.
        default: Short names where none are given.
        run_flag: The flag, such as "--resume", that names a run whose settings come first.
        given: Settings from Python, as a file has them; they count more than those of files.

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
        run_flag: str | None = None,
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.verb, self.kinds, self.options, self.given = verb, kinds, options, dict(given)
        self.typed = list(sys.argv[1:] if argv is None else argv) or ["--help"]
        self.sections = SECTIONS if "model" in kinds else tuple(kinds)
        self.help = _help_topic(self.typed, self.sections)
        if self.help:
            self.sections = (self.help,)
        chosen, run, files, self.words = arrange(self.typed, run_flag)
        for kind in chosen.keys() - {*kinds}:
            raise InputError(f"unknown setting '{kind}': {verb} makes no {kind}")
        self.run = folder_of_run(run, str(run_flag), self.typed) if run and not self.help else None
        self.files = [*([self.run / "config.yaml"] if self.run else []), *files]
        self.left_out: list[str] = []
        """Notes on settings that are not taken: for other classes, or of groups replaced."""
        self._choose(chosen, default)
        names = " ".join(f"--{kind} NAME" for kind in kinds)
        super().__init__(
            self.classes.get("model", pl.LightningModule),
            self.classes.get("data", pl.LightningDataModule),
            run=False,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints hold plain constructor arguments
            parser_kwargs={
                "prog": f"python -m wsis.{verb}",
                "usage": f"%(prog)s {names} [--SETTING VALUE ...] [--config FILE ...]",
                "description": "; ".join(
                    f"--{kind}: {', '.join(registry.names(kind))}" for kind in kinds
                ),
                "formatter_class": Help,
                "allow_abbrev": False,
                "exit_on_error": False,
            },
        )

    def _choose(self, chosen: Mapping[str, str], default: Mapping[str, str]) -> None:
        """Settle on classes and on the recipe that comes before all other files."""
        configs = [read_config(path, self.typed) for path in self.files]
        self.paths: dict[str, str] = {}
        for kind in self.kinds:
            in_files = [(config.get(kind) or {}).get("class_path") for config in configs]
            given = [default.get(kind), *in_files, chosen.get(kind)]
            name = next((name for name in reversed(given) if name), None)
            if name:
                self.paths[kind] = registry.class_path(kind, name, typed=True)
            elif not self.help:
                known = ", ".join(registry.names(kind))
                raise InputError(f"give --{kind}, one of: {known}")
        paths = self.paths.items()
        self.classes = {kind: registry.find(kind, path, typed=True) for kind, path in paths}
        self.names = {kind: registry.short_name(kind, path) for kind, path in paths}
        usual = recipe(**self.names) if len(self.names) == 2 else None
        if usual:
            self.files.insert(0, usual)

    # What LightningCLI asks for, in its order

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed, which LightningCLI looks for under this name; its own takes any number."""
        if self.help in ("", self.kinds[0]):
            sentence = "Seed of weights and of all that is random in training."
            parser.add_argument("--seed_everything", type=SEED, default=0, help=sentence)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections that the verb needs, and for `--help` the one that is asked for."""
        if "trainer" in self.sections:
            parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False, instantiate=False)
            parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER.items()})
        for kind in self.classes.keys() & {*self.sections}:
            hidden = {*LINKED} if self.help and kind == "model" else set()
            parser.add_class_arguments(self.classes[kind], kind, fail_untyped=False, skip=hidden)
        if self.help or len(self.classes) < 2:
            return
        model = self.classes["model"]
        for name in set(LINKED) & registry.arguments(model).keys():
            ask = partial(self._ask_data, name=name, model=model)
            parser.link_arguments("data", f"model.{name}", compute_fn=ask, apply_on="instantiate")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add W&B and the verb's own settings."""
        if "wandb" in self.sections:
            parser.add_class_arguments(WandB, "wandb")
        before = _keys(parser)
        if self.help in ("", self.kinds[0]):
            self.options(parser)
        self.known = _keys(parser)
        self.own = self.known - before

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        """Parse the files, each on top of the one before, and then the words."""
        if self.help == "model" and "model" not in self.classes:
            print(list_names(self.verb, self.kinds))
            raise SystemExit(0)
        below = None
        for path in self.files:
            config = self._for_this(read_config(path, self.typed), path)
            is_runs = self.run is not None and path.parent == self.run
            self.left_out += [] if is_runs else replaced(path, config, below)
            below = overlay(parser, config, str(path), below)
        if self.given:
            below = overlay(parser, self.given, "the settings given", below, merge=True)
        if self.help:
            parser.set_defaults({k: v for k, v in (below or {}).items() if k != "config"})
            print(parser.format_help(), end="")
            if self.help == "model":
                print("more: --help data, --help trainer, --help wandb")
            raise SystemExit(0)
        words = [word.replace(".init_args.", ".", 1) for word in self.words]
        if "--trainer.logger" in " ".join(words) and any(w.endswith("Logger") for w in words):
            words.append("--trainer.logger.save_dir=.")  # most need one; `loggers` replaces it
        for word in words:
            if word.startswith("--"):
                check_known(word[2:].partition("=")[0], self.known)
        try:
            self.config = parser.parse_args(words, below)
        except ArgumentError as error:
            raise InputError(gist(error)) from error

    def _for_this(self, config: Config, path: Path) -> Config:
        """Leave out sections for other verbs, or for other classes than the chosen ones."""
        left_out = {*SECTIONS} - {*self.sections}
        if "model" not in self.sections:
            left_out.add("seed_everything")
        for kind in registry.KINDS:
            section = config.get(kind) or {}
            name = section.get("class_path")
            theirs = registry.class_path(kind, name, typed=True) if name else self.paths.get(kind)
            if theirs == self.paths.get(kind):
                continue
            left_out.add(kind)
            if kind in self.names and len(section) > 1:
                other = registry.short_name(kind, str(theirs))
                self.left_out.append(
                    f"{path}: settings of {kind} {other} are left out, not for {self.names[kind]}"
                )
        return {section: config[section] for section in config if section not in left_out}

    def before_instantiate_classes(self) -> None:
        """Set a default number of steps; reject settings that no run could begin with."""
        if "model" not in self.kinds:
            return
        trainer = self.config.trainer
        check_loggers(trainer.logger)
        check_precision(trainer.precision)
        check_numbers(trainer.as_dict())
        if trainer.max_steps == -1 and trainer.max_epochs is None and trainer.max_time is None:
            trainer.max_steps = STEPS
        elif trainer.max_steps != -1 and trainer.max_epochs not in (None, -1):
            raise InputError(
                "trainer.max_steps and trainer.max_epochs are both set; "
                "add --trainer.max_steps -1 to count epochs"
            )

    def instantiate_classes(self) -> None:
        """Make model and data; the Trainer waits for its stage."""
        config = self.config.clone()
        if "model" in self.kinds:
            config.trainer.logger = False
        try:
            self.config_init = self.parser.instantiate(config)
        except ValueError as error:  # jsonargparse wraps what a linked setting raises
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise
        self.model, self.datamodule = self.config_init.get("model"), self.config_init.get("data")
        typed = [word[2:].partition("=")[0] for word in self.words if word.startswith("--")]
        given = [*typed, *dotted(self.given, self.known)]
        say_effects({"model": self.model, "data": self.datamodule}, given)

    def _ask_data(self, data: Any, name: str, model: type[Any]) -> Any:
        """Return what a model asks of the data, which are looked at before weights are fetched."""
        if not hasattr(data, name):
            path = self.paths["data"]
            raise InputError(f"data {path} does not say its `{name}`, which this model asks for")
        if isinstance(data, DataModule) and issubclass(model, Method):
            if model.needs_every_field:
                require_labels(data.index("train"), model.supervision, data.relabelled)
            model.check_data(data, self.config["model"])
        return getattr(data, name)

    # What a verb asks for

    def settings(self) -> Config:
        """Return the settings as a file has them, without a verb's own, such as its folder."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, format="yaml"))
        for kind, path in self.paths.items():
            config[kind] = {"class_path": path, "init_args": config.get(kind) or {}}
        return {key: value for key, value in config.items() if key not in {*self.own, "config"}}

    def trainer_settings(self) -> dict[str, Any]:
        """Return the trainer's settings, in which an unset interval is validation at the end."""
        given = copy.deepcopy(dict(self.config_init.trainer))  # callbacks hold state
        if isinstance(given["val_check_interval"], int):  # counted in batches over the whole run
            given["check_val_every_n_epoch"] = None
        elif given["val_check_interval"] is None:  # only at the end, which `Run.fit` sees to
            given["check_val_every_n_epoch"] = sys.maxsize
        return given

    def make_trainer(
        self, folder: Path, callbacks: Sequence[Callback] = (), **trainer: Any
    ) -> pl.Trainer:
        """Make a trainer that writes to `folder`.

        Args:
            folder: of the stage.
            callbacks: besides those of the command line.
            **trainer: settings that take precedence over the command line's.
        """
        given = self.trainer_settings() | trainer | {"default_root_dir": str(folder)}
        shown: list[Callback] = []
        if given["enable_progress_bar"] is None:
            given["enable_progress_bar"] = sys.stderr.isatty()
            name = title(folder.name, self.model.stage_names())
            shown = [Bar(name) if sys.stderr.isatty() else Lines(name)]
        settings = self.settings()
        settings["trainer"] |= trainer
        given["callbacks"] = [*(given["callbacks"] or []), *callbacks, *shown]
        given["callbacks"].append(Record(folder, settings))
        given["logger"] = self.loggers(folder)
        return new_trainer(**given)

    def loggers(self, folder: Path) -> list[Logger]:
        """Make the CSV file, W&B if a project is named, and those of `--trainer.logger`."""
        loggers: list[Logger] = [CSV(folder)]
        wandb: WandB = self.config_init.wandb
        if wandb.project:
            planned = self.model.stage_names()
            loggers.append(wandb.logger(folder.parent, folder.name, planned))
        asked = self.config.trainer.logger
        for spec in asked if isinstance(asked, list) else [asked]:
            if spec in (None, True, False):
                continue
            module, _, name = spec.class_path.rpartition(".")
            place = {"save_dir": str(folder)}
            if spec.init_args.get("name") == "lightning_logs":
                place |= {"name": "", "version": ""}
            cls = getattr(importlib.import_module(module), name)
            loggers.append(cls(**(dict(spec.init_args) | place)))
        return loggers


def _help_topic(words: Sequence[str], sections: Sequence[str]) -> str:
    """Return the section whose help is asked for, the first by default; "" if no help is."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        flag, _, topic = word.partition("=")
        if flag in ("-h", "--help"):
            return next((s for s in sections if s in (topic, after)), sections[0])
    return ""


def _keys(parser: ArgumentParser) -> set[str]:
    return set(parser.get_defaults(skip_validation=True).keys())
