"""Who may call what, asked of every route that there is."""

from __future__ import annotations

import warnings

import pytest
from litestar.exceptions import LitestarDeprecationWarning

from appliance.daemon import create_app
from appliance.settings import Settings
from tests.daemon_process import error_of, ok

ROUTES = [
    ("DELETE", "/api/v1/aliases/{name}"),
    ("DELETE", "/api/v1/keys/{key_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("DELETE", "/v1/models/{name}"),
    ("GET", "/api/v1/aliases"),
    ("GET", "/api/v1/aliases/{name}"),
    ("GET", "/api/v1/hardware"),
    ("GET", "/api/v1/imports"),
    ("GET", "/api/v1/imports/{import_id}"),
    ("GET", "/api/v1/keys"),
    ("GET", "/api/v1/models"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/uploads/{upload_id}"),
    ("POST", "/api/v1/imports"),
    ("POST", "/api/v1/imports/{import_id}/cancel"),
    ("POST", "/api/v1/keys"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/files"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/uploads/{upload_id}/cancel"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/uploads/{upload_id}/parts"),
    ("PUT", "/api/v1/aliases/{name}"),
]
ADMIN_ONLY = [
    (method, path)
    for method, path in ROUTES
    if path.startswith("/api/v1/keys")
    or (path.startswith("/api/v1/aliases") and method != "GET")
    or (path.startswith("/api/v1/imports") and method != "GET")
    or (method, path) == ("DELETE", "/v1/models/{name}")
]


def all_routes(tmp_path):
    """Every route of the application, the framework's own included."""
    with warnings.catch_warnings():
        # Litestar 2 names what its version 3 will want; pyproject.toml keeps to version 2.
        warnings.simplefilter("ignore", LitestarDeprecationWarning)
        app = create_app(Settings(state_dir=tmp_path / "state"))
    found = set()
    for route in app.routes:
        path = "".join(
            part if isinstance(part, str) else f"/{{{part.name}}}"
            for part in ["", route.path_format]
        )
        found |= {(method, path) for method in route.methods}
    app.state.store.close()
    return found


def test_every_route_is_in_the_table(tmp_path):
    ours = {
        (method, path)
        for method, path in all_routes(tmp_path)
        if not path.startswith("/schema") and method != "OPTIONS"
    }
    assert ours == set(ROUTES)
    assert len(ROUTES) == 36


@pytest.mark.parametrize("key", [None, "sk-wrong", "x" * 5000, "é"])
def test_no_route_but_one_answers_without_a_known_key(shared_daemon, tmp_path, key):
    asked = 0
    with shared_daemon.client(None) as client:
        if key is not None:
            client.headers = [(b"Authorization", f"Bearer {key}".encode())]
        for method, path in sorted(all_routes(tmp_path)):
            if path == "/healthz":
                continue
            filled = path.replace("{", "").replace("}", "").replace("path:", "")
            asked += 1
            error = error_of(client.request(method, filled), 401)
            assert error["code"] in ("missing_api_key", "invalid_api_key"), (method, path)
    assert asked == 68


def test_health_needs_no_key_and_tells_nothing(shared_daemon):
    with shared_daemon.client(None) as client:
        assert set(ok(client.get("/healthz"))) == {"status", "version"}


@pytest.mark.parametrize("header", ["sk-x", "Basic c2stYWRtaW46", "Bearer", "Token {key}", "{key}"])
def test_other_schemes_are_no_key(shared_daemon, header):
    with shared_daemon.client(None) as client:
        client.headers["Authorization"] = header.format(key=shared_daemon.key)
        error = error_of(client.get("/v1/models"), 401)
        assert error["code"] == "missing_api_key"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_scheme_is_case_insensitive(shared_daemon, scheme):
    with shared_daemon.client(None) as client:
        client.headers["Authorization"] = f"{scheme} {shared_daemon.key}"
        ok(client.get("/v1/models"))


def test_key_of_an_app_works_everywhere_but_on_admin_routes(shared_daemon):
    made = ok(shared_daemon.http.post("/api/v1/keys", json={"name": "line 3"}))
    assert made["admin"] is False
    with shared_daemon.client(made["secret"]) as app:
        ok(app.get("/v1/models"))
        ok(app.get("/v1/files"))
        for method, path in ADMIN_ONLY:
            answer = app.request(method, path.replace("{key_id}", made["id"]), json={"name": "x"})
            assert error_of(answer, 403)["code"] == "insufficient_permissions"
        assert len(ADMIN_ONLY) == 8
        ok(app.get("/api/v1/aliases"))
        ok(shared_daemon.http.delete(f"/api/v1/keys/{made['id']}"))
        error_of(app.get("/v1/models"), 401)


def test_listed_keys_show_no_secret(shared_daemon):
    made = ok(shared_daemon.http.post("/api/v1/keys", json={"name": "line 4"}))
    listed = shared_daemon.http.get("/api/v1/keys").text
    assert made["id"] in listed
    assert made["secret"] not in listed
    assert "sha256" not in listed


def test_refused_request_is_refused_before_its_body_is_read(shared_daemon):
    """A stranger cannot make the daemon take in half a gigabyte."""
    sent = 0

    def endless():
        nonlocal sent
        while sent < 64 << 20:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    growth_bytes = shared_daemon.watch_memory()
    with shared_daemon.client("sk-wrong") as client:
        try:
            answer = client.post(
                "/v1/files",
                content=endless(),
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            )
            error_of(answer, 401)
        except OSError:
            pass  # the connection may be cut before everything is sent
    assert growth_bytes() < 16 << 20
    assert sent < 64 << 20
