"""HTTP to a controller: its token, its certificate, problems as errors, pages, events as they come.

A change carries an Idempotency-Key, so that it can be sent again when its answer was lost.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from gpupool import __version__
from gpupool.cli.backend import BackendError, RefusedError, UsageError
from gpupool.cli.settings import Controller, token

_TRIES = 3
_LONGEST_RETRY_S = 5.0
_PAGE = 1000  # the most that it gives
_RESUME_S = (0.5, 1.0, 2.0, 5.0)  # between connections for events; the last for ever
_SILENCE_S = 60.0  # the controller sends a comment more often than that
_LOCAL = ("127.0.0.1", "::1", "localhost")


class Rest:
    """One controller. Everything here raises BackendError."""

    def __init__(self, controller: Controller, timeout_s: float) -> None:
        """Raises UsageError where the URL, the token or the CA is none."""
        self.url = controller.url
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise UsageError(f"controller {self.url!r}: write https://host or https://host:port")
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise UsageError(
                f"controller {self.url}: a token would cross the network in clear text; use https"
            )
        if controller.token_file is None:
            raise UsageError(
                f"controller {self.url}: no token; name its file with --token-file or token_file "
                "in cli.toml (`gpupool token create` makes one)"
            )
        self._token_file = controller.token_file
        headers = {
            "Authorization": f"Bearer {token(controller.token_file)}",
            "User-Agent": f"gpupool/{__version__}",
        }
        try:
            self._client = httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers=headers,
                timeout=timeout_s,
                verify=_trusted(controller),
                trust_env=parts.scheme == "https",  # no proxy between us and this machine
            )
        except OSError as error:
            raise UsageError(f"{controller.ca_file}: {error.strerror or error}") from error

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON there."""
        return self._request("GET", path, query=query)

    def send(self, method: str, path: str, body: object = None, **query: str | int) -> Any:
        """One change, done once however often it has to be sent; what it answers."""
        return self._request(method, path, query, body, {"Idempotency-Key": str(uuid.uuid4())})

    def send_secret(self, path: str, body: object) -> Any:
        """A POST whose answer is kept nowhere, so it cannot be sent again."""
        return self._request("POST", path, body=body, tries=1)

    def pages(self, path: str, **query: str | int) -> Iterator[Any]:
        """Every item of a list."""
        cursor = ""
        while True:
            more: dict[str, str | int] = {"cursor": cursor} if cursor else {}
            page = self.get(path, limit=_PAGE, **query, **more)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise BackendError(f"{self.url}{path}: this is no list of gpupool's controller")
            yield from page["items"]
            cursor = page.get("next_cursor") or ""
            if not cursor:
                return

    def follow(self, after: int | None) -> Iterator[Any]:
        """Events as they come, for ever, across restarts of the controller and of what is between.

        Where a connection ends it begins again after the last event.
        """
        last = "" if after is None else str(after)
        failures = 0
        while True:
            try:
                for number, event in self._stream(last):
                    last, failures = number or last, 0
                    if event is not None:
                        yield event
            except (httpx.TransportError, _AwayError):
                pass  # a controller that is restarted comes back
            time.sleep(_RESUME_S[min(failures, len(_RESUME_S) - 1)])
            failures += 1

    def _stream(self, last: str) -> Iterator[tuple[str, Any]]:
        """The number of each event, and the event; None where only the number was told."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        timeout = httpx.Timeout(_SILENCE_S)
        query = {"follow": "true"}
        watch = self._client.stream(
            "GET", "/events", params=query, headers=headers, timeout=timeout
        )
        with watch as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                if _retry_s(answer) is not None or answer.is_server_error:
                    raise _AwayError
                raise self._problem("GET", "/events", answer)
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif fields:
                    yield fields.get("id", ""), _event(fields)
                    fields = {}

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str | int] | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
        tries: int = _TRIES,
    ) -> Any:
        for attempt in range(1, tries + 1):
            last = attempt == tries
            try:
                answer = self._client.request(
                    method, path, params=query, json=body, headers=headers
                )
            except httpx.TransportError as error:
                if last:
                    raise BackendError(f"{self.url}: {_words(error)}") from error
                time.sleep(0.2 * attempt)
                continue
            if answer.is_success:
                return _json(self.url, answer) if answer.content else None
            wait_s = _retry_s(answer)
            if last or wait_s is None:
                raise self._problem(method, path, answer)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _problem(self, method: str, path: str, answer: httpx.Response) -> BackendError:
        """One text of an RFC 9457 document, or of whatever else came."""
        asked = f"{self.url}: {method} /api/v1{path}"
        status = answer.status_code
        try:
            content = answer.json()
            detail, request = str(content["detail"]), str(content.get("request_id", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return BackendError(
                f"{asked}: status {status} and no reason; is this a gpupool controller, or a "
                "proxy before it?"
            )
        if status == httpx.codes.UNAUTHORIZED:
            detail += f" The token is the one in {self._token_file}."
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return BackendError(f"{asked}: {detail} (request {request})")
        return RefusedError(detail)


class _AwayError(Exception):
    """The controller cannot answer now."""


def _event(fields: dict[str, str]) -> Any:
    """What one block of the stream tells."""
    if fields.get("event") == "reset":
        return {
            "number": int(fields["id"]),
            "time": "-",
            "kind": "reset",
            "subject": "events",
            "message": "some are no longer kept: look again at what you watch",
        }
    return json.loads(fields["data"]) if fields.get("data") else None


def _trusted(controller: Controller) -> Any:
    import ssl

    if controller.ca_file is None:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=str(controller.ca_file))


def _json(url: str, answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise BackendError(
            f"{url}: the answer is no JSON; is this a gpupool controller?"
        ) from error


def _retry_s(answer: httpx.Response) -> float | None:
    """Too many requests, or the database is away: when to come again. None: that would not help."""
    if answer.status_code not in (
        httpx.codes.TOO_MANY_REQUESTS,
        httpx.codes.SERVICE_UNAVAILABLE,
    ):
        return None
    with contextlib.suppress(ValueError):
        return min(float(answer.headers.get("Retry-After", 1)), _LONGEST_RETRY_S)
    return 1.0


def _words(error: httpx.TransportError) -> str:
    """What httpx means, and what to do."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time; its log may say why"
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted ({text}); name who signed it with --ca-file"
    return f"{text or type(error).__name__}; is the controller running there?"
