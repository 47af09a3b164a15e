"""The page's server: its files, the pictures, their labels, what comes next, and retraining."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from flask import Flask, Response, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from wsis.errors import InputError
from wsis.images.draw import colour, jpeg, picture_of
from wsis.images.read import read_image
from wsis.images.scale import resize_long_side
from wsis.serve.guard import Access, protect
from wsis.serve.labels import version_of
from wsis.serve.order import Order, next_images
from wsis.serve.store import Conflict, Store
from wsis.serve.suggestions import inside_of, rings_of, suggestions
from wsis.serve.training import Training
from wsis.types import Record

__all__ = ["LARGEST", "create_app"]

LARGEST = 4_000_000
"""Bytes of a request; a label with masks has some thousands."""
LONG_SIDE = 2048
"""Pixels of the longer side of a picture on the page, at most."""
ASSETS = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "canvas.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
ORDERS: tuple[Order, ...] = ("worth", "random", "name")


class _Missing(InputError):
    """There is no such image."""


def create_app(store: Store, training: Training, access: Access, order: Order = "random") -> Flask:
    """Make the server.

    Images are called by their numbers in the sorted list of their names, so that no request names a
    file.

    Args:
        store: images and labels.
        training: runs, and what the newest found.
        access: who may ask.
        order: of the images, until a page asks for another.
    """
    app = Flask("wsis.serve", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST
    protect(app, access)
    _add_errors(app)
    _add_page(app)
    _add_images(app, store, training)
    _add_next(app, store, training, order, access.read_only)
    _add_training(app, store, training)
    return app


def _add_errors(app: Flask) -> None:
    """Answer every error with a line of json."""

    @app.errorhandler(InputError)
    def wrong(error: InputError) -> ResponseReturnValue:
        return jsonify(error=str(error)), 404 if isinstance(error, _Missing) else 400

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> ResponseReturnValue:
        return jsonify(error=f"{error.name}".lower()), error.code or 500


def _add_page(app: Flask) -> None:
    folder = files("wsis.serve") / "static"
    content = {name: (folder / name).read_bytes() for name in ASSETS}

    @app.get("/")
    def page() -> Response:
        return Response(content["page.html"], content_type=ASSETS["page.html"])

    @app.get("/static/<name>")
    def asset(name: str) -> Response:
        if name not in content:
            raise _Missing(f"no file {name}")
        return Response(content[name], content_type=ASSETS[name])


def _add_images(app: Flask, store: Store, training: Training) -> None:
    @app.get("/picture/<int:number>")
    def picture(number: int) -> Response:
        name = _name(store, number)
        pixels = picture_of(read_image(store.root / name, store.size(name)))
        shown = resize_long_side(pixels, LONG_SIDE, enlarge=None)
        return Response(jpeg(shown), content_type="image/jpeg")

    @app.get("/api/images/<int:number>")
    def label(number: int) -> Response:
        return jsonify(_image(store, training, number))

    @app.put("/api/images/<int:number>")
    def put(number: int) -> ResponseReturnValue:
        given = _body()
        name = _name(store, number)
        try:
            if given.get("file") != name:  # images were added, and the server started again
                raise Conflict(name)
            store.put(name, str(given.get("version")), given.get("label"))
        except Conflict:
            told = "the label was changed elsewhere; here it is as it is now"
            return jsonify(_image(store, training, number) | {"error": told}), 409
        return jsonify(_image(store, training, number))

    @app.post("/api/classes")
    def add_class() -> Response:
        name = _body().get("name")
        store.add_class(name if isinstance(name, str) else "")
        return jsonify(_classes(store))


def _add_next(app: Flask, store: Store, training: Training, order: Order, read_only: bool) -> None:
    shown: set[str] = set()

    @app.get("/api/next")
    def next_image() -> Response:
        asked = next((o for o in ORDERS if o == request.args.get("order")), order)
        found, classes = training.found, len(store.classes)
        ranked = next_images(store.names, store.labels(), found, classes, asked, shown)
        current = request.args.get("after", type=int)
        names = [name for name in ranked if store.number(name) != current]
        if not names:
            return jsonify(number=None)
        shown.add(names[0])
        return jsonify(number=store.number(names[0]))

    @app.get("/api/state")
    def state() -> Response:
        counts = {"images": len(store.names), "done": store.done}
        page = {"order": order, "read_only": read_only, "training": training.state()}
        return jsonify(_classes(store) | counts | page)


def _add_training(app: Flask, store: Store, training: Training) -> None:
    @app.post("/api/training")
    def start() -> Response:
        training.start(store)
        return jsonify(training.state())

    @app.post("/api/training/stop")
    def stop() -> Response:
        training.stop()
        return jsonify(training.state())


def _body() -> dict[str, Any]:
    """Return the json object that was sent.

    Raises:
        InputError: it is not one.
    """
    given = request.get_json(silent=True)
    if not isinstance(given, dict):
        raise InputError("the request is no json object")
    return given


def _name(store: Store, number: int) -> str:
    if number >= len(store.names):
        raise _Missing(f"no image {number}")
    return store.names[number]


def _classes(store: Store) -> Record:
    hues = ["#{:02x}{:02x}{:02x}".format(*colour(k)) for k in range(len(store.classes))]
    return {"classes": store.classes, "colours": hues}


def _image(store: Store, training: Training, number: int) -> Record:
    """Return all that the page shows of an image."""
    name = _name(store, number)
    label, size = store.label(name), store.size(name)
    return {
        "number": number,
        "file": name,
        "height": size[0],
        "width": size[1],
        "version": version_of(label),
        "label": {**label, "objects": [_drawn(thing, size) for thing in label["objects"]]},
        "suggestions": [
            {**_drawn(suggestion, size), "inside": inside_of(suggestion)}
            for suggestion in suggestions(training.found, name, label)
        ],
        "done": store.done,
        **_classes(store),
    }


def _drawn(thing: Mapping[str, Any], size: tuple[int, int]) -> Record:
    return {**thing, "rings": rings_of(thing.get("segmentation"), size)}
