"""HTTP to a controller: errors in words, repeats that change nothing twice, pages, events.

What the real controller answers is in test_controller.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.cli.backend import BackendError, RefusedError, UsageError
from gpupool.cli.rest import Rest
from gpupool.cli.settings import Controller
from gpupool.hostd.adapters import certificate
from tests.fakes.rest_server import Reply, Script, serving

PROBLEM = {
    "type": "urn:gpupool:problem:no-room",
    "title": "There is no room",
    "status": 409,
    "detail": "50 % of a GPU was asked for; the most that is free is 20 %. Ask for less.",
    "request_id": "r-1",
}


@pytest.fixture
def script() -> Iterator[Script]:
    """A server."""
    with serving() as one:
        yield one


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text("gpupool_abc\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def rest(script: Script, token: Path) -> Rest:
    """A client of the server."""
    return Rest(Controller(script.url, token, None), 5)


def test_the_token_goes_along(script: Script, rest: Rest) -> None:
    script.replies = [Reply(200, {"a": 1})]
    assert rest.get("/things", limit=3) == {"a": 1}
    (asked,) = script.asked
    assert asked.headers["authorization"] == "Bearer gpupool_abc"
    assert asked.path == "/api/v1/things?limit=3"


@pytest.mark.parametrize("url", ["http://controller.example.org", "ftp://x", "controller", ""])
def test_a_token_never_goes_in_clear_text(token: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"use https|write https"):
        Rest(Controller(url, token, None), 5)


def test_a_refusal_is_the_controllers_text(script: Script, rest: Rest) -> None:
    script.replies = [Reply(409, PROBLEM, {"Content-Type": "application/problem+json"})]
    with pytest.raises(RefusedError) as refused:
        rest.send("POST", "/vgpus", {})
    assert str(refused.value) == PROBLEM["detail"]
    assert refused.value.exit_code == 3
    assert len(script.asked) == 1


def test_a_wrong_token_says_which_file(script: Script, rest: Rest, token: Path) -> None:
    script.replies = [Reply(401, {**PROBLEM, "status": 401, "detail": "Not known."})]
    with pytest.raises(RefusedError, match=f"Not known. The token is the one in {token}"):
        rest.get("/vgpus")


def test_an_accident_has_the_number_of_its_request(script: Script, rest: Rest) -> None:
    script.replies = [Reply(500, {**PROBLEM, "status": 500, "detail": "It failed."})]
    with pytest.raises(
        BackendError, match=r"GET /api/v1/vgpus: It failed. \(request r-1\)"
    ) as told:
        rest.get("/vgpus")
    assert told.value.exit_code == 1


@pytest.mark.parametrize("body", ["<html>", [], {"detail": None}, "null"])
def test_what_is_no_problem_document(script: Script, rest: Rest, body: object) -> None:
    script.replies = [Reply(502, body)]
    with pytest.raises(BackendError, match=r"no reason; is this|None"):
        rest.get("/vgpus")


def test_a_lost_answer_is_asked_for_again_with_the_same_key(script: Script, rest: Rest) -> None:
    script.replies = [Reply(0), Reply(503, PROBLEM, {"Retry-After": "0"}), Reply(201, {"id": "v"})]
    assert rest.send("POST", "/vgpus", {"name": "a"}) == {"id": "v"}
    assert len(script.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in script.asked}) == 1
    script.replies = [Reply(200, {})]
    rest.send("POST", "/vgpus", {"name": "b"})
    assert len({asked.headers["idempotency-key"] for asked in script.asked}) == 2


def test_a_secret_is_asked_for_once(script: Script, rest: Rest) -> None:
    script.replies = [Reply(0)]
    with pytest.raises(BackendError, match="is the controller running there"):
        rest.send_secret("/tokens", {})
    (asked,) = script.asked
    assert "idempotency-key" not in asked.headers


def test_it_gives_up(script: Script, rest: Rest) -> None:
    script.replies = [Reply(503, PROBLEM, {"Retry-After": "0"})]
    with pytest.raises(BackendError, match="most that is free"):
        rest.get("/vgpus")
    assert len(script.asked) == 3


def test_nobody_there(token: Path) -> None:
    with pytest.raises(BackendError, match=r"127.0.0.1:1: .*is the controller running there"):
        Rest(Controller("http://127.0.0.1:1", token, None), 5).get("/vgpus")


def test_the_certificate_is_checked(token: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command, which makes certificates, is missing")
    certificate.prepare(tmp_path / "c.pem", tmp_path / "k.pem", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with serving(context) as script:
        script.replies = [Reply(200, {"a": 1})]
        with pytest.raises(BackendError, match=r"not trusted.*with --ca-file"):
            Rest(Controller(script.url, token, None), 5).get("/vgpus")
        assert script.asked == []
        trusting = Rest(Controller(script.url, token, tmp_path / "c.pem"), 5)
        assert trusting.get("/vgpus") == {"a": 1}


def test_a_ca_file_that_is_none(token: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", token):
        with pytest.raises(UsageError, match=str(path)):
            Rest(Controller("https://127.0.0.1:1", token, path), 5)


def test_pages(script: Script, rest: Rest) -> None:
    script.replies = [
        Reply(200, {"items": [1, 2], "next_cursor": "abc"}),
        Reply(200, {"items": [3], "next_cursor": None}),
    ]
    assert list(rest.pages("/vgpus")) == [1, 2, 3]
    assert "cursor" not in script.asked[0].path
    assert script.asked[1].path.endswith("cursor=abc")


def test_what_is_no_list(script: Script, rest: Rest) -> None:
    script.replies = [Reply(200, {"hello": 1})]
    with pytest.raises(BackendError, match="no list of gpupool's controller"):
        list(rest.pages("/vgpus"))


def stream(*numbers: int) -> Reply:
    """Server-sent events with these numbers."""
    lines = [
        f"id: {number}\nevent: vgpu.created\ndata: {json.dumps({'number': number})}\n\n"
        for number in numbers
    ]
    return Reply(200, ": hello\n\n" + "".join(lines), {"Content-Type": "text/event-stream"})


def test_events_resume_where_they_were_cut(script: Script, rest: Rest) -> None:
    script.replies = [stream(4, 5), Reply(0), Reply(503, PROBLEM), stream(6)]
    found = list(itertools.islice(rest.follow(3), 3))
    assert [event["number"] for event in found] == [4, 5, 6]
    last = [asked.headers.get("last-event-id") for asked in script.asked]
    assert last == ["3", "5", "5", "5"]


def test_events_that_are_no_longer_kept(script: Script, rest: Rest) -> None:
    reset = "retry: 2000\n\nid: 90\nevent: reset\ndata: {}\n\n"
    script.replies = [Reply(200, reset), stream(91)]
    found = list(itertools.islice(rest.follow(3), 2))
    assert [(event["number"], event.get("kind")) for event in found] == [(90, "reset"), (91, None)]
    assert script.asked[1].headers["last-event-id"] == "90"


def test_refused_events_are_not_asked_for_again(script: Script, rest: Rest) -> None:
    script.replies = [Reply(403, {**PROBLEM, "detail": "Not for you."})]
    with pytest.raises(RefusedError, match="Not for you"):
        list(rest.follow(None))
    assert len(script.asked) == 1
