"""Label photos and look at what a run finds in them, on a page: `python -m wsis.serve RUN`."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.inference import classes_of
from wsis.serve.order import Order

__all__ = ["main", "serve"]


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page that `argv` asks for, until Ctrl-C."""
    with plain_errors(lambda: "; all labels are on disk"):
        words = list(sys.argv[1:] if argv is None else argv)
        if words and not words[0].startswith("-"):
            words.insert(0, "--run")
        default = {"data": "folder"}
        cli = CLI("serve", words, ("data",), _options, default, run_flag="--run")
        serve(cli.datamodule, **{name: cli.config[name] for name in cli.own})


def serve(
    data: Any,
    run: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8008,
    token: bool = False,
    read_only: bool = False,
    order: Order = "random",
    model: str = "pdsl",
    recipe: Path | None = None,
    runs: Path = Path("runs"),
    accelerator: str = "auto",
) -> None:
    """Serve a page on which the photos of a folder are labelled, until Ctrl-C.

    Labels are kept in labels.json (COCO) and labels.csv (tags) in the folder of the photos, which
    `--data folder` reads.

    Args:
        data: The photos, `--data folder`.
        run: Folder of a finished run, whose masks are suggested; also as the first word.
        host: Address to listen on; other machines can reach another than 127.0.0.1, with a token.
        port: Port to listen on; 0 takes a free one.
        token: Whether a token is needed on 127.0.0.1, too, which all users of a machine can reach.
        read_only: Whether the page only shows photos, labels and what the run finds.
        order: Which photo comes next: that whose label tells most for a second of work, random, or
            by name.
        model: Method that the page trains; with a run, that of the run.
        recipe: Settings file of wsis.fit for that, above those of the method or the run.
        runs: Folder for the runs that the page trains.
        accelerator: What to train on, as Lightning calls it: auto, cpu, gpu, ...

    Raises:
        InputError: no photos, labels that cannot be read, another process has them, an address that
            cannot be used, or a package is missing.
    """
    try:
        import waitress

        from wsis.serve.app import LARGEST, create_app
        from wsis.serve.guard import access_for
        from wsis.serve.store import Store
        from wsis.serve.training import Recipe, Training
    except ModuleNotFoundError as error:
        raise InputError(f'no module {error.name}: pip install "wsis[serve]"') from error
    if not isinstance(data, Folder):
        raise InputError(f"{type(data).__name__} has labels of its own; give --data folder")
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        access = access_for(host, port, token, read_only)
        learnt = [] if run is None else [c["name"] for c in classes_of(run, data)[0]]
        classes = list(dict.fromkeys([*data.classes, *learnt]))
        store = Store(data.folder, data.labels["train"], classes, read_only)
        words = () if recipe is None else ("--config", str(recipe))
        training = Training(data.folder, Recipe(model, words, accelerator), run, runs)
        app = create_app(store, training, access, order)
        training.predict()
        done = "" if read_only else f"{store.done} of "
        told = "to look at" if read_only else "are done"
        print(f"{done}{len(store.names)} photos {told}; Ctrl-C ends", flush=True)
        print(f"open {_address(host, port, access.token)}", flush=True)
        limits = {"threads": 8, "max_request_body_size": LARGEST}
        try:
            waitress.create_server(app, sockets=[listener], ident="wsis", **limits).run()
        finally:
            training.stop()


def _options(parser: LightningArgumentParser) -> None:
    parser.add_function_arguments(serve, skip={"data"})


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the address is taken, or not one of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {error}; choose another --port or --host"
        ) from error


def _address(host: str, port: int, token: str) -> str:
    """Return what to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


if __name__ == "__main__":
    main()
