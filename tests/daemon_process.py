"""A daemon with fake children, as a process of its own: started, killed, stopped, asked over real HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from appliance.records import BaseModel, Quantization, ReleaseFile
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests import network_guard

T = TypeVar("T")
DEADLINE_SECONDS = 30.0
BASE = "fake-base"


class DaemonProcess:
    """`start` waits until it answers. The port stays the same over restarts."""

    module: tuple[str, ...] = ("tests.fakes.daemon",)
    # What the command begins with: a program that runs the rest.
    prefix: tuple[str, ...] = ()

    def __init__(self, state_dir: Path, **settings: object) -> None:
        self.state_dir = state_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = settings
        self.log = state_dir.with_name(state_dir.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    # --- life ---

    def start(self) -> DaemonProcess:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", *self.module],
                env=self.environment(),
                stdout=log,
                stderr=log,
                cwd=self.state_dir.parent,
            )
        wait_for(self._answers, "the daemon to answer", why=self.log_tail)
        return self

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def tell_to_stop(self) -> None:
        """SIGTERM; returns at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        assert self._process is not None
        self._close_client()
        try:
            status = self._process.wait(DEADLINE_SECONDS)
        finally:
            # Shown if the test fails.
            print(self.log_tail())
        return status

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("APPLIANCE_")}
        return {
            **own,
            "PYTHONPATH": str(CHECKOUT),
            **self.connection(),
            **{f"APPLIANCE_{name.upper()}": str(value) for name, value in self.settings.items()},
        }

    def connection(self) -> Mapping[str, str]:
        """What the command line needs to find this daemon."""
        return {
            "APPLIANCE_STATE_DIR": str(self.state_dir),
            "APPLIANCE_PORT": str(self.port),
            "APPLIANCE_CONFIG": os.devnull,
            "APPLIANCE_PROFILE_OVERRIDE_FILE": os.devnull,
        }

    # --- talk ---

    @property
    def key(self) -> str:
        return (self.state_dir / "admin.key").read_text().strip()

    @property
    def http(self) -> httpx.Client:
        """A client with the admin key; a new one after each start."""
        if self._client is None:
            self._client = self.client(self.key)
        return self._client

    def client(self, key: str | None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False
        )

    def upload(
        self, content: bytes, *, purpose: str = "fine-tune", name: str = "train.jsonl"
    ) -> Any:
        return ok(
            self.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})
        )

    def create_job(self, behaviour: str = "", **body: object) -> Any:
        file = self.upload(rows(behaviour))
        return ok(
            self.http.post(
                "/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file["id"], **body}
            )
        )

    def job(self, job_id: str) -> Any:
        return ok(self.http.get(f"/v1/fine_tuning/jobs/{job_id}"))

    def events(self, job_id: str) -> list[Any]:
        """Oldest first."""
        answer = ok(self.http.get(f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 1000}))
        return list(reversed(answer["data"]))

    def wait_for_job(self, job_id: str, *statuses: str) -> Any:
        wanted = statuses or ("succeeded", "failed", "cancelled")

        def reached() -> Any:
            job = self.job(job_id)
            return job if job["status"] in wanted else None

        return wait_for(reached, f"job {' or '.join(wanted)}", why=self.log_tail)

    def wait_for_event(self, job_id: str, text: str) -> Any:
        def found() -> Any:
            return next((e for e in self.events(job_id) if text in e["message"]), None)

        return wait_for(found, f"an event with {text!r}", why=self.log_tail)

    def chat(self, content: str, **body: object) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        body = {"model": BASE, "messages": messages, **body}
        return self.http.post("/v1/chat/completions", json=body)

    def watch_memory(self) -> Callable[[], int]:
        """A function that tells by how many bytes the memory has grown at its peak since now."""
        # proc(5): 5 sets the peak back to what is resident.
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        before = self._peak_bytes()
        return lambda: self._peak_bytes() - before

    def _peak_bytes(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024

    # --- inside ---

    def _answers(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        assert status is None, f"the daemon ended with {status}: {self.log_tail()}"
        with contextlib.suppress(httpx.TransportError), self.client(None) as client:
            return client.get("/healthz").is_success
        return False

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._close_client()
        self._process.send_signal(number)
        return self.wait()

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def wait_for(probe: Callable[[], T], what: str, *, why: Callable[[], str] = lambda: "") -> T:
    """The first true value of `probe`; a generous deadline, since nothing is measured here."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := probe()):
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{why()}"
        time.sleep(0.03)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    return response.json()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, once it has OpenAI's shape."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and body["error"]["type"]
    return dict(body["error"])


def rows(behaviour: str = "", count: int = 12) -> bytes:
    """Training data whose first message tells the fakes what to do."""
    questions = [behaviour or "question 0", *(f"question {n}" for n in range(1, count))]
    lines = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "yes"}]}
        for q in questions
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class RealDaemon(DaemonProcess):
    """`appliance serve` as it is installed, with its real children."""

    module = ("appliance", "serve")

    def environment(self) -> dict[str, str]:
        """The network guard in the daemon and in every child of it."""
        return {**super().environment(), **network_guard.CHILD_ENVIRONMENT}

    def import_base(self, source: Path, name: str) -> None:
        """`appliance models import`."""
        importing = ["appliance", "models", "import", str(source), "--name", name]
        provenance = ["--licence", "Apache-2.0", "--origin", "a test"]
        argv = [sys.executable, "-m", *importing, *provenance]
        subprocess.run(argv, env=self.environment(), check=True)


def add_base(
    state_dir: Path, name: str = BASE, load: str = "", real_gguf: Path | None = None
) -> Path:
    """Put a base model into the catalogue, for the fake engine unless it is real; returns its GGUF file."""
    directory = state_dir / "base_models" / name
    (directory / "hf").mkdir(parents=True)
    (directory / "hf" / "config.json").write_text("{}")
    gguf = directory / "model-Q4_K_M.gguf"
    if real_gguf is None:
        gguf.write_text(json.dumps({"name": name, "load": load}))
    else:
        shutil.copyfile(real_gguf, gguf)
    file = ReleaseFile(
        quantization=Quantization.Q4_K_M,
        path=str(gguf.relative_to(state_dir)),
        bytes=gguf.stat().st_size,
        sha256="0" * 64,
    )
    base = BaseModel(
        name=name,
        created_at=1,
        architecture="FakeForCausalLM",
        parameters=1,
        context_length=2048,
        licence="apache-2.0",
        source="a test",
        sha256="0" * 64,
        directory=str(directory.relative_to(state_dir)),
        files=(file,),
    )
    store = Store(state_dir)
    try:
        store.catalog.put_base(base)
    finally:
        store.close()
    return gguf


def group_members(group: int) -> list[int]:
    """Processes of a process group that are not zombies."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does (proc(5)); T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
