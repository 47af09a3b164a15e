"""The server through Flask's own client: labels, pictures, conflicts, and who may not ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

from flask.testing import FlaskClient
from PIL import Image
from test_store import CLASSES, HEIGHT, WIDTH, square, write_photos

from wsis.errors import InputError
from wsis.serve.app import create_app
from wsis.serve.guard import access_for
from wsis.serve.store import Store
from wsis.serve.suggestions import Found
from wsis.serve.training import Recipe, Training

ORIGIN = "http://localhost"
MASK = square()
SUGGESTION = {"name": "cat", "score": 0.9, "bbox": [10.0, 5.0, 20.0, 10.0], "segmentation": MASK}


@pytest.fixture
def store(tmp_path):
    write_photos(tmp_path / "photos")
    store = Store(tmp_path / "photos", classes=CLASSES)
    yield store
    store.close()


@pytest.fixture
def training(store, tmp_path) -> Training:
    training = Training(store.root, Recipe("cam"), runs=tmp_path / "runs")
    training.found = Found(Path("runs/x"), 0.5, {"1.jpg": [SUGGESTION]})
    return training


@pytest.fixture
def client(store, training) -> FlaskClient:
    return create_app(store, training, access_for("127.0.0.1", 8008)).test_client()


def ask(client: FlaskClient, method: str, path: str, body=None, **headers: str):
    """What the page sends."""
    given = {"Origin": ORIGIN} | {name.replace("_", "-"): v for name, v in headers.items()}
    return client.open(path, method=method, json=body, headers=given)


def put(client: FlaskClient, number: int, change: dict, **headers: str):
    seen = client.get(f"/api/images/{number}").json
    body = {key: seen[key] for key in ("file", "version")} | {"label": seen["label"] | change}
    return ask(client, "PUT", f"/api/images/{number}", body, **headers)


def test_a_click_is_on_disk_before_the_answer(client, store):
    answer = put(client, 0, {"objects": [{"name": "dog", "points": [[1, 2, 1]]}]})
    assert answer.status_code == 200
    assert answer.json["label"]["tags"] == ["dog"]
    (begun,) = json.loads((store.root / "labels.json").read_text())["wsis"]["begun"]
    assert (begun["file_name"], begun["label"]["objects"][0]["points"]) == ("0.jpg", [[1, 2, 1]])


def test_the_second_browser_hears_of_the_first(client):
    seen = client.get("/api/images/0").json
    assert put(client, 0, {"tags": ["cat"]}).status_code == 200
    late = {"file": "0.jpg", "version": seen["version"], "label": {**seen["label"], "done": True}}
    answer = ask(client, "PUT", "/api/images/0", late)
    assert answer.status_code == 409
    assert answer.json["label"] == {"done": False, "tags": ["cat"], "objects": [], "refused": []}
    again = late | {"version": answer.json["version"]}
    assert ask(client, "PUT", "/api/images/0", again).status_code == 200


def test_a_page_that_is_older_than_the_server_changes_no_other_image(client):
    seen = client.get("/api/images/0").json
    body = {"file": "gone.jpg", "version": seen["version"], "label": seen["label"]}
    assert ask(client, "PUT", "/api/images/0", body).status_code == 409


def test_suggestions_go_as_they_are_answered(client):
    (found,) = client.get("/api/images/1").json["suggestions"]
    x, y = found["inside"]
    assert 10 < x < 30
    assert 5 < y < 15
    (ring,) = found["rings"]
    assert {*zip(ring[::2], ring[1::2], strict=True)} == {(10, 5), (30, 5), (30, 15), (10, 15)}
    for change in (
        {"refused": [{"name": "cat", "point": [x, y]}]},
        {"objects": [{"name": "cat", "bbox": found["bbox"], "segmentation": MASK}]},
        {"objects": [{"name": "cat", "bbox": [11, 5, 20, 10]}]},
        {"objects": [{"name": "cat", "points": [[x, y, 1]]}]},
    ):
        assert put(client, 1, change).json["suggestions"] == []
        assert put(client, 1, {"objects": [], "refused": []}).json["suggestions"]
    for change in (
        {"refused": [{"name": "cat", "point": [50, 30]}]},
        {"refused": [{"name": "dog", "point": [x, y]}]},
        {"objects": [{"name": "cat", "points": [[50, 30, 1]]}]},
        {"objects": [{"name": "dog", "bbox": found["bbox"]}]},
    ):
        assert put(client, 1, change).json["suggestions"]
        put(client, 1, {"objects": [], "refused": []})


def test_who_may_only_look_changes_nothing(store, training):
    app = create_app(store, training, access_for("127.0.0.1", 8008, read_only=True))
    client = app.test_client()
    assert client.get("/api/state").json["read_only"] is True
    assert client.get("/api/images/1").json["suggestions"]
    assert client.get("/picture/1").status_code == 200
    before = sorted(path.name for path in store.root.iterdir())
    answers = [put(client, 0, {"done": True})]
    answers += [ask(client, "POST", f"/api/{path}", {}) for path in ("training", "training/stop")]
    answers += [ask(client, "POST", "/api/classes", {"name": "cow"})]
    for answer in answers:
        assert (answer.status_code, answer.json) == (403, {"error": "this page is only to look at"})
    assert sorted(path.name for path in store.root.iterdir()) == before
    assert store.classes == [*CLASSES]
    assert training.state()["state"] == "idle"


def test_pictures_are_upright_jpegs(client, store):
    answer = client.get("/picture/0")
    assert answer.content_type == "image/jpeg"
    assert Image.open(answer_file(answer)).size == (WIDTH, HEIGHT)


def answer_file(answer):
    import io

    return io.BytesIO(answer.data)


def test_next_gives_every_image_once_before_any_twice(client):
    numbers, after = [], ""
    for _ in range(3):
        numbers.append(client.get(f"/api/next?order=random{after}").json["number"])
        after = f"&after={numbers[-1]}"
    assert sorted(numbers) == [0, 1, 2]
    for number in numbers:
        put(client, number, {"done": True})
    assert client.get("/api/next").json == {"number": None}


def test_a_broken_photo_is_one_line(client, store):
    (store.root / "0.jpg").write_bytes(b"no picture")
    answer = client.get("/api/images/0")
    assert answer.status_code == 400
    assert "0.jpg" in answer.json["error"]


def test_classes_are_added(client, store):
    assert ask(client, "POST", "/api/classes", {"name": " bird "}).json["classes"][-1] == "bird"
    for name in ("bird", "a;b", 3, None):
        assert ask(client, "POST", "/api/classes", {"name": name}).status_code == 400
    assert store.classes == [*CLASSES, "bird"]


def test_training_needs_labels(client):
    answer = ask(client, "POST", "/api/training", {})
    assert answer.status_code == 400
    assert "no image is done" in answer.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/picture/../../etc/passwd",
        "/picture/..%2f..%2flabels.json",
        "/picture/9",
        "/picture/-1",
        "/picture/0.jpg",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/app.py",
        "/api/images/99",
        "/labels.json",
        "/%2fetc/passwd",
    ],
)
def test_nothing_else_is_served(client, path):
    answer = client.get(path, follow_redirects=True)
    assert answer.status_code == 404
    assert b"root:" not in answer.data
    assert "error" in answer.json


def test_names_are_data_and_never_html(tmp_path):
    name = "<script>alert(1)</script>"
    folder = tmp_path / "photos"
    write_photos(folder)
    try:
        (folder / "0.jpg").rename(folder / "<img src=x onerror=alert(2)>.jpg")
    except OSError:
        pytest.skip("no such names here")
    store = Store(folder, classes=[name])
    client = create_app(
        store, Training(folder, Recipe("cam")), access_for("localhost", 1)
    ).test_client()
    for path in ("/api/state", "/api/images/2", "/api/images/7<script>"):
        answer = client.get(path)
        assert answer.content_type == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    page = client.get("/").text
    assert "alert" not in page
    assert "{" not in page  # nothing is filled in
    store.close()


def test_headers_allow_nothing_inline_and_nothing_from_elsewhere(client):
    for path in ("/", "/static/page.js", "/api/state", "/picture/0", "/nowhere"):
        headers = client.get(path).headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Cache-Control"] == "no-store"


def test_the_page_has_nothing_inline():
    folder = Path(__file__).parents[2] / "wsis/serve/static"
    page = (folder / "page.html").read_text()
    assert "style=" not in page
    assert "<style" not in page
    assert " on" not in page.replace(" on ", " ").replace(" on<", "<")
    assert page.count("<script") == page.count('<script type="module" src="/static/')
    for script in folder.glob("*.js"):
        text = script.read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text


def attempts(client: FlaskClient) -> list[int]:
    """Everything that another site could try, with the state of a page that is open beside it."""
    seen = client.get("/api/images/0").json
    body = {"file": "0.jpg", "version": seen["version"], "label": {**seen["label"], "done": True}}
    own = {"Origin": ORIGIN}
    text = {"data": json.dumps(body), "content_type": "text/plain"}
    host = {"Host": "evil.example"}
    path = "/api/images/0"
    cross = {"Sec-Fetch-Site": "cross-site"}
    answers = [
        client.put(path, json=body),  # without an origin
        client.put(path, json=body, headers={"Origin": "http://evil.example"}),
        client.put(path, json=body, headers={"Origin": "null"}),
        client.put(path, json=body, headers={"Origin": "http://localhost:3000"}),
        client.put(path, json=body, headers={"Origin": "http://localhost.evil.example"}),
        client.put(path, json=body, headers=own | cross),
        client.put(path, headers=own, **text),
        client.post("/api/training", headers=own, data="", content_type="application/x-www-form-urlencoded"),
        client.put(path, json=body, headers=host | {"Origin": "http://evil.example"}),
        client.get(path, headers=host),  # a name that resolves to this machine
        client.get("/", headers=host),
        client.get("/picture/0", headers=host | {"X-Forwarded-Host": "localhost"}),
        client.get(path, headers={"Host": "localhost@evil.example"}),
        client.get(path, headers={"Host": "evil.example:8008"}),
        client.get(path, headers={"Origin": "http://evil.example"}),
        client.get("/picture/0", headers=cross),
        client.get(path, headers={"Sec-Fetch-Site": "same-site"}),  # another port of this machine
        client.options(path, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}),
    ]  # fmt: skip
    return [answer.status_code for answer in answers]


def test_other_sites_change_and_read_nothing(client, store):
    codes = attempts(client)
    assert set(codes) <= {400, 403, 415}
    assert not (store.root / "labels.json").exists()
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=cross).status_code == 200  # a link to the page


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "localhost:9000", "LOCALHOST:1"]
)
def test_loopback_has_several_names_and_tunnels_other_ports(client, host):
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.get("/api/state", headers=headers).status_code == 200


def test_other_addresses_need_the_token(store, training):
    access = access_for("192.168.1.5", 8008)
    client = create_app(store, training, access).test_client()

    def get(path: str):
        return client.get(path, base_url="http://192.168.1.5:8008")

    assert len(access.token) >= 32
    for path in ("/", "/?token=", "/?token=wrong", "/api/state", "/picture/0", "/static/page.js"):
        assert get(path).status_code == 401
    assert get(f"/api/state?token={access.token}").status_code == 401  # on the page alone
    page = get(f"/?token={access.token}")
    assert page.status_code == 200
    cookie = page.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert get("/api/state").status_code == 200  # the client has the cookie now
    assert client.get("/api/state").status_code == 403  # by another name
    client.set_cookie("wsis-8008", "wrong", domain="192.168.1.5")
    assert get("/api/state").status_code == 401


def test_addresses():
    assert access_for("127.0.0.1", 1).token == ""
    assert access_for("::1", 1).token == ""
    assert access_for("127.0.0.1", 1, token=True).token
    assert access_for("10.0.0.7", 1).hosts == {"10.0.0.7"}
    assert access_for("10.0.0.7", 1).token != access_for("10.0.0.7", 1).token
    for everywhere in ("0.0.0.0", "::", ""):
        with pytest.raises(InputError, match="every network"):
            access_for(everywhere, 1)


def test_large_requests_are_refused(client):
    answer = ask(client, "PUT", "/api/images/0", {"label": "x" * 5_000_000})
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize("body", [None, [], "x", {}, {"file": "0.jpg"}])
def test_what_is_no_request_is_refused(client, body):
    assert ask(client, "PUT", "/api/images/0", body).status_code in (400, 409, 415)
