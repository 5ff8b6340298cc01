"""Aliases over HTTP: set, asked, listed, trained on, kept over a kill, and changed under load."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon_process import BASE, DaemonProcess, add_base, error_of, ok, rows, wait_for

ALIASES = "/api/v1/aliases"
CLIENTS = 4


def set_alias(daemon: DaemonProcess, model: str, name: str = "faults"):
    return daemon.http.put(f"{ALIASES}/{name}", json={"model": model})


def answer_of(response) -> tuple[str, str]:
    """The `model` of a whole answer, and its text."""
    answer = ok(response)
    return answer["model"], answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def release(shared_daemon) -> str:
    """A fine-tuned model in two quantizations."""
    quantizations = {"quantizations": ["Q4_K_M", "Q8_0"]}
    job = shared_daemon.create_job(appliance=quantizations)
    return shared_daemon.wait_for_job(job["id"], "succeeded")["fine_tuned_model"]


def test_alias_is_set_shown_listed_and_deleted(shared_daemon, release):
    http = shared_daemon.http
    made = ok(set_alias(shared_daemon, BASE, "shown"))
    assert set(made) == {"name", "model", "created_at", "changed_at"}
    assert (made["name"], made["model"]) == ("shown", BASE)
    assert ok(http.get(f"{ALIASES}/shown")) == made
    changed = ok(set_alias(shared_daemon, release, "shown"))
    assert changed["model"] == release
    listed = ok(http.get(ALIASES))
    assert listed["object"] == "list"
    assert changed in listed["data"]
    assert ok(http.delete(f"{ALIASES}/shown")) == {"name": "shown", "deleted": True}
    for asked in (http.get(f"{ALIASES}/shown"), http.delete(f"{ALIASES}/shown")):
        error = error_of(asked, 404)
        assert (error["code"], error["param"]) == ("alias_not_found", "name")
    assert "shown" not in [each["name"] for each in ok(http.get(ALIASES))["data"]]
    error = error_of(shared_daemon.chat("hi", model="shown"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_alias_is_a_model_among_others(shared_daemon, release):
    ok(set_alias(shared_daemon, release, "listed"))
    models = ok(shared_daemon.http.get("/v1/models"))["data"]
    (shown,) = [each for each in models if each["id"] == "listed"]
    assert (shown["object"], shown["owned_by"], shown["alias_of"]) == ("model", "local", release)
    assert ok(shared_daemon.http.get("/v1/models/listed")) == shown
    assert {each["alias_of"] for each in models if each["id"] in (BASE, release)} == {None}
    assert ok(shared_daemon.http.get(f"/v1/models/{release}"))["alias_of"] is None


def test_answer_names_the_model_that_the_alias_means(shared_daemon, release):
    ok(set_alias(shared_daemon, release, "asked"))
    assert answer_of(shared_daemon.chat("hello", model="asked")) == (release, f"{release}:hello")
    for name, meant in ((BASE, BASE), (f"{BASE}@Q4_K_M", f"{BASE}@Q4_K_M")):
        assert answer_of(shared_daemon.chat("hello", model=name))[0] == meant
    streamed = shared_daemon.chat("hello", model="asked", stream=True).text
    *chunks, done = [each.removeprefix("data: ") for each in streamed.strip().split("\n\n")]
    assert done == "[DONE]"
    assert {json.loads(chunk)["model"] for chunk in chunks} == {release}
    body = {"model": "asked", "prompt": ["one", "two"]}
    assert ok(shared_daemon.http.post("/v1/completions", json=body))["model"] == release
    streamed = shared_daemon.http.post("/v1/completions", json={**body, "stream": True}).text
    *chunks, done = [each.removeprefix("data: ") for each in streamed.strip().split("\n\n")]
    assert {json.loads(chunk)["model"] for chunk in chunks} == {release}


def test_quantization_is_of_the_alias_or_of_the_request_but_not_of_both(shared_daemon, release):
    ok(set_alias(shared_daemon, release, "free"))
    assert answer_of(shared_daemon.chat("q", model="free@Q8_0"))[0] == f"{release}@Q8_0"
    ok(set_alias(shared_daemon, f"{release}@Q8_0", "fixed"))
    assert answer_of(shared_daemon.chat("q", model="fixed"))[0] == f"{release}@Q8_0"
    for twice in ("fixed@Q8_0", "fixed@Q4_K_M", "fixed@"):
        error = error_of(shared_daemon.chat("q", model=twice), 400)
        assert (error["code"], error["param"]) == ("variant_given_twice", "model")
    for streaming in (False, True):
        error = error_of(shared_daemon.chat("q", model="free@Q2_K", stream=streaming), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_adapter_that_replaces_another_model_of_its_loaded_base_answers_first(
    shared_daemon, release
):
    ok(set_alias(shared_daemon, BASE, "attached"))
    ok(shared_daemon.chat("hello", model="attached"))
    log = shared_daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    before = log.read_text()
    ok(set_alias(shared_daemon, f"{release}@adapter", "attached"))
    proof = log.read_text().removeprefix(before)
    assert "load" not in proof
    assert proof.count("finish") == 1
    answer = answer_of(shared_daemon.chat("hello", model="attached"))
    assert answer == (f"{release}@adapter", f"{BASE}+adapter:hello")
    error = error_of(shared_daemon.chat("hello", model="attached@Q8_0"), 400)
    assert error["code"] == "variant_given_twice"


def test_job_from_an_alias_is_one_from_its_model(shared_daemon, release):
    ok(set_alias(shared_daemon, f"{release}@Q8_0", "trained"))
    file = shared_daemon.upload(rows())
    body = {"model": "trained", "training_file": file["id"], "hyperparameters": {"n_epochs": 1}}
    job = ok(shared_daemon.http.post("/v1/fine_tuning/jobs", json=body))
    ok(set_alias(shared_daemon, BASE, "trained"))
    assert job["model"] == release
    assert job["appliance"]["plan"]["base_model"] == BASE
    assert job["appliance"]["plan"]["initial_adapter"]
    assert shared_daemon.wait_for_job(job["id"])["status"] == "succeeded"


BAD = [
    ("a", {"model": "none"}, 404, "model_not_found", "model"),
    ("a", {"model": f"{BASE}@Q8_0"}, 404, "model_not_found", "model"),
    ("a", {"model": f"{BASE}@"}, 404, "model_not_found", "model"),
    ("a", {"model": "known"}, 400, "alias_of_alias", "model"),
    ("known", {"model": "known"}, 400, "alias_of_alias", "model"),
    ("a", {"model": ""}, 400, "invalid_value", "model"),
    ("a", {"model": "x" * 257}, 400, "invalid_value", "model"),
    ("a", {"model": None}, 400, "invalid_value", "model"),
    ("a", {"model": BASE, "warm": True}, 400, "invalid_value", "data"),
    ("a", {}, 400, "invalid_value", "data"),
    ("a", [], 400, "invalid_value", "data"),
    (BASE, {"model": BASE}, 400, "model_exists", "name"),
    ("a%40Q8_0", {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("ft:a", {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("a%2Fb", {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("a%0A", {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("%C3%BC", {"model": BASE}, 400, "invalid_alias_name", "name"),
    (".a", {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("x" * 65, {"model": BASE}, 400, "invalid_alias_name", "name"),
    ("x" * 5000, {"model": BASE}, 400, "invalid_alias_name", "name"),
]


@pytest.mark.parametrize(("name", "body", "status", "code", "param"), BAD, ids=range(len(BAD)))
def test_bad_alias_is_refused_by_its_field(shared_daemon, name, body, status, code, param):
    ok(set_alias(shared_daemon, BASE, "known"))
    before = ok(shared_daemon.http.get(ALIASES))
    error = error_of(shared_daemon.http.put(f"{ALIASES}/{name}", json=body), status)
    assert (error["code"], error["param"]) == (code, param)
    assert len(error["message"]) < 1000
    assert ok(shared_daemon.http.get(ALIASES)) == before


def test_bad_aliases_are_many():
    assert len(BAD) == 20


# --- kills and clients that go away ---


def test_alias_is_kept_over_a_kill(daemon):
    made = ok(set_alias(daemon, f"{BASE}@Q4_K_M"))
    daemon.restart()
    assert ok(daemon.http.get(ALIASES))["data"] == [made]
    assert answer_of(daemon.chat("hello", model="faults")) == (f"{BASE}@Q4_K_M", f"{BASE}:hello")


def loads(daemon: DaemonProcess, model: str) -> int:
    """How often a model has been loaded."""
    log = daemon.state_dir / "base_models" / model / "model-Q4_K_M.log"
    return log.read_text().count("load ") if log.exists() else 0


@contextmanager
def changing(daemon: DaemonProcess, model: str) -> Iterator[None]:
    """A client that lets the alias mean `model`, and has gone at the end of the block."""
    body = json.dumps({"model": model}).encode()
    head = (
        f"PUT {ALIASES}/faults HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: loads(daemon, model), "the new model to be loaded")
        yield


def test_daemon_that_is_killed_in_the_midst_of_a_change_has_the_old_meaning(daemon):
    add_base(daemon.state_dir, "new", load="load-hang")
    ok(set_alias(daemon, BASE))
    ok(daemon.chat("hello", model="faults"))
    with changing(daemon, "new"):
        daemon.restart()
    assert answer_of(daemon.chat("hello", model="faults")) == (BASE, f"{BASE}:hello")


def test_daemon_stops_in_the_midst_of_a_change(daemon):
    add_base(daemon.state_dir, "new", load="load-hang")
    ok(set_alias(daemon, BASE))
    ok(daemon.chat("hello", model="faults"))
    with changing(daemon, "new"):
        assert daemon.stop() == 0
    assert "is cut" not in daemon.log.read_text()
    daemon.start()
    assert ok(daemon.http.get(f"{ALIASES}/faults"))["model"] == BASE


def test_change_goes_on_when_its_client_goes_away(daemon):
    add_base(daemon.state_dir, "new", load="load-slow")
    ok(set_alias(daemon, BASE))
    ok(daemon.chat("hello", model="faults"))
    with changing(daemon, "new"):
        pass
    wait_for(
        lambda: ok(daemon.http.get(f"{ALIASES}/faults"))["model"] == "new",
        "the change",
        why=daemon.log_tail,
    )
    assert answer_of(daemon.chat("hello", model="faults")) == ("new", "new:hello")


# --- changes under load ---


class Load:
    """Clients that ask the alias without a pause, whole and streamed by turns, and check each answer."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._over = threading.Event()
        self._lock = threading.Lock()
        # By model; answers to requests that began when `changed` had been set are counted apart.
        self.answers: Counter[str] = Counter()
        self.later: Counter[str] = Counter()
        self.changed = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as threads:
            asking = [threads.submit(self._ask, number) for number in range(CLIENTS)]
            try:
                yield
            finally:
                self._over.set()
                # What failed first is the cause of whatever else did.
                for each in asking:
                    each.result()

    def _ask(self, number: int) -> None:
        with self._daemon.client(self._daemon.key) as http:
            while not self._over.is_set():
                number += 1
                count = self.later if self.changed.is_set() else self.answers
                # Some are short, and some are still being given when the model changes.
                content = "slow 5" if number % 4 == 0 else "hello"
                messages = [{"role": "user", "content": content}]
                body = {"model": "faults", "messages": messages, "stream": bool(number % 2)}
                model, text = _read(http.post("/v1/chat/completions", json=body))
                assert text == ("0 1 2 3 4 " if content == "slow 5" else f"{model}:hello")
                with self._lock:
                    count[model] += 1


def _read(response) -> tuple[str, str]:
    """Model and text of an answer that is whole or streamed, and complete."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return answer_of(response)
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]", response.text
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    (model,) = {chunk["model"] for chunk in chunks}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    return model, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.fixture(params=[2, 1], ids=["both-fit", "one-fits"])
def crowded(request, daemon_with: Callable[..., DaemonProcess], tmp_path: Path) -> DaemonProcess:
    """A daemon with room for one model or two, whose alias means the base model."""
    override = tmp_path / "profile.toml"
    override.write_text(f"max_loaded_models = {request.param}\n")
    daemon = daemon_with(profile="cpu", profile_override_file=override)
    ok(set_alias(daemon, BASE))
    return daemon


def test_no_request_fails_when_the_model_changes(crowded):
    add_base(crowded.state_dir, "new", load="load-slow")
    load = Load(crowded)
    with load.running():
        wait_for(lambda: load.answers[BASE] >= 20, "answers of the old model")
        assert ok(set_alias(crowded, "new"))["model"] == "new"
        load.changed.set()
        wait_for(lambda: load.later["new"] >= 20, "answers of the new model")
    assert set(load.answers) <= {BASE, "new"}
    assert load.answers[BASE] >= 20
    assert set(load.later) == {"new"}
    # Nobody who came late had the old one loaded once more.
    assert (loads(crowded, BASE), loads(crowded, "new")) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "code"), [("load-failure", "load_failed"), ("load-crash", "engine_died")]
)
def test_no_request_fails_when_the_new_model_does_not_load(crowded, kind, code):
    add_base(crowded.state_dir, "new", load=kind)
    load = Load(crowded)
    with load.running():
        wait_for(lambda: load.answers[BASE] >= 20, "answers of the old model")
        assert error_of(set_alias(crowded, "new"), 500)["code"] == code
        load.changed.set()
        wait_for(lambda: load.later[BASE] >= 20, "answers of the old model again")
    assert set(load.answers) | set(load.later) == {BASE}
    assert ok(crowded.http.get(f"{ALIASES}/faults"))["model"] == BASE
    assert loads(crowded, "new") == 1


def test_no_request_fails_however_often_the_model_changes(crowded):
    add_base(crowded.state_dir, "new")
    load = Load(crowded)
    with load.running(), ThreadPoolExecutor(2) as threads:
        wait_for(lambda: load.answers[BASE], "an answer")

        def change(model: str) -> None:
            with crowded.client(crowded.key) as http:
                for _ in range(3):
                    ok(http.put(f"{ALIASES}/faults", json={"model": model}))

        for each in [threads.submit(change, model) for model in (BASE, "new")]:
            each.result()
        load.changed.set()
        meant = ok(crowded.http.get(f"{ALIASES}/faults"))["model"]
        wait_for(lambda: load.later[meant] >= 8, "answers of the last model")
    assert set(load.later) == {meant}
    assert set(load.answers) <= {BASE, "new"}
