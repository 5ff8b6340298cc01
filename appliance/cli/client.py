"""A small HTTP client of the local daemon, with the admin key from the state directory."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from appliance.errors import (
    ApplianceError,
    ChildFailed,
    ConfigurationError,
    NotAuthenticated,
)
from appliance.settings import Settings

# A cold model may have to load before the first byte comes.
READ_TIMEOUT_SECONDS = 600.0


class Client:
    """Calls the daemon; a refusal becomes an ApplianceError with the daemon's own words."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **params: Any) -> Any:
        """GET, decoded."""
        return self._decoded(self._http.get(path, params=params))

    def post(self, path: str, body: Any = None) -> Any:
        """POST JSON, decoded."""
        return self._decoded(self._http.post(path, json=body))

    def put(self, path: str, body: Any) -> Any:
        """PUT JSON, decoded."""
        return self._decoded(self._http.put(path, json=body))

    def delete(self, path: str) -> Any:
        """DELETE, decoded."""
        return self._decoded(self._http.delete(path))

    def upload(self, path: str, filename: str, content: bytes, fields: dict[str, str]) -> Any:
        """POST a form with one file, decoded."""
        return self._decoded(
            self._http.post(path, files={"file": (filename, content)}, data=fields)
        )

    def stream(self, path: str, body: Any) -> Iterator[str]:
        """POST JSON and yield the answer's lines as they come."""
        with self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
                self._decoded(response)
            yield from response.iter_lines()

    def _decoded(self, response: httpx.Response) -> Any:
        if response.is_success:
            return response.json()
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            raise ApplianceError(
                "unexpected_answer",
                f"something at {response.url} answered {response.status_code}: "
                + " ".join(response.text.split())[:200],
                next_step="see whether it is the appliance that listens there",
            ) from None
        raise ApplianceError(error["code"] or "error", error["message"], param=error["param"])


@contextmanager
def connect(settings: Settings) -> Iterator[Client]:
    """A client of the daemon of these settings; says what to do if it does not answer."""
    headers = {"Authorization": f"Bearer {admin_key(settings)}"}
    timeout = httpx.Timeout(READ_TIMEOUT_SECONDS, connect=5.0)
    # No proxy of the environment may come between the CLI and its own box.
    with httpx.Client(
        base_url=settings.url, headers=headers, timeout=timeout, trust_env=False
    ) as http:
        try:
            yield Client(http)
        except httpx.ConnectError as exc:
            raise ConfigurationError(
                "no_daemon",
                f"a daemon should answer at {settings.url}; none does",
                next_step="if it runs, give its --host and --port here, too; else start it: "
                f"appliance serve --state-dir {shlex.quote(str(settings.state_dir))} "
                f"--host {settings.host} --port {settings.port}",
            ) from exc
        except httpx.TransportError as exc:
            raise ChildFailed(
                "no_answer",
                f"the daemon at {settings.url} should answer to the end, but: {exc}",
                next_step="see whether it was stopped or restarted",
            ) from exc


def admin_key(settings: Settings) -> str:
    """The admin's API key from the state directory."""
    try:
        return settings.admin_key_file.read_text(encoding="ascii").strip()
    except OSError as exc:
        raise NotAuthenticated(
            "no_admin_key",
            f"the admin key should be readable at {settings.admin_key_file}; {exc.strerror}",
            next_step="give the daemon's --state-dir, and run as the user it runs as",
        ) from exc
