"""Chat over HTTP, beside other servers: throughput and time to the first token, with one load program.

.venv/bin/python benchmarks/serving.py --peer-python PYTHON | --own-server-python PYTHON
    [--rounds 5] [--only TEXT] [--json PATH]

The peers are llama-server, by an interpreter with `xllamacpp`, and llama-cpp-python's own server, by one with
`llama-cpp-python[server]`; these serve nothing but this comparison. The starter model is imported into a
directory of its own, and its Q4_K_M is what all serve, with the same threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from report import emit, row

from appliance.settings import STARTER

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"
SLOTS = 16
# What each of the peer's slots then has is enough for the longest prompt here.
PEER_N_CTX = SLOTS * 2048


class Server(NamedTuple):
    """Where one listens, and what it asks for."""

    url: str
    key: str
    pid: int
    name: str = "ours"
    load_switches: tuple[str, ...] = ()


class Case(NamedTuple):
    """What is asked of both."""

    name: str
    options: dict[str, Any]
    metrics: tuple[str, ...] = ("tokens_per_second",)
    restarts_peer: bool = False


FIRST = ("tokens_per_second", "first_p50_seconds", "first_p95_seconds")
CASES = [
    *(
        Case(f"unique prompts, {clients} clients", {"clients": clients, "requests": requests})
        for clients, requests in ((1, 8), (4, 4), (8, 4), (16, 3))
    ),
    Case(
        "shared 400 words, cold, 8 clients",
        {"clients": 8, "requests": 1, "max-tokens": 24, "prompts": "shared"},
        FIRST,
    ),
    Case(
        "shared 400 words, warm, 8 clients",
        {"clients": 8, "requests": 4, "max-tokens": 24, "prompts": "shared"},
    ),
    # As many as have room in the 4,096 tokens that the profile gives an engine.
    Case(
        "talks of 4 turns after 400 words of their own, 4 clients",
        {"clients": 4, "requests": 4, "max-tokens": 24, "prompts": "talk"},
        FIRST,
    ),
]


def import_starter(state: Path) -> Path:
    """The Q4_K_M of the starter, from an import like any other."""
    (starter,) = STARTER.glob("*.gguf")
    command = [sys.executable, "-m", "appliance", "models", "import", str(starter), "--name", MODEL]
    subprocess.run(
        [*command, "--licence", "Apache-2.0", "--origin", "SmolLM2-135M-Instruct"],
        check=True,
        env=environment(state),
        stdout=subprocess.DEVNULL,
    )
    (gguf,) = state.glob("base_models/*/*Q4_K_M.gguf")
    return gguf


def environment(state: Path, **more: object) -> dict[str, str]:
    own = {"APPLIANCE_STATE_DIR": str(state), "APPLIANCE_CONFIG": os.devnull}
    return {**os.environ, **own, **{key: str(value) for key, value in more.items()}}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_up(url: str) -> None:
    """Raises TimeoutError after half a minute."""
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.1)
    raise TimeoutError(url)


@contextlib.contextmanager
def ours(state: Path, threads: int) -> Iterator[Server]:
    """The appliance, as the operator starts it."""
    port = free_port()
    variables = environment(
        state,
        APPLIANCE_PORT=port,
        APPLIANCE_THREADS=threads,
        APPLIANCE_PROFILE="cpu",
        APPLIANCE_ENGINE_IDLE_SECONDS=36000,
    )
    with (state / "daemon.log").open("ab") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "appliance", "serve"], env=variables, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/healthz")
        yield Server(url, (state / "admin.key").read_text().strip(), daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()


@contextlib.contextmanager
def peer(python: str, gguf: Path, threads: int) -> Iterator[Server]:
    """llama-server inside xllamacpp."""
    arguments = [str(gguf), str(threads), str(SLOTS), str(PEER_N_CTX)]
    process = subprocess.Popen(
        [python, str(HERE / "peer_server.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Server(process.stdout.readline().strip(), "none", process.pid, "llama-server")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def own_server(python: str, gguf: Path, threads: int) -> Iterator[Server]:
    """llama-cpp-python's own, which writes one answer at a time."""
    port = free_port()
    flags = {
        "model": gguf,
        "n_ctx": 2048,
        "n_threads": threads,
        "n_threads_batch": threads,
        "port": port,
        # Else an answer ends where the next is asked for.
        "interrupt_requests": "false",
        "verbose": "false",
    }
    command = [python, "-m", "llama_cpp.server", *(f"--{name}={flags[name]}" for name in flags)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(f"{url}/v1/models")
            yield Server(url, "none", process.pid, "llama_cpp.server", ("--counts-pieces",))
        finally:
            process.kill()
            process.wait()


def measure(server: Server, options: dict[str, Any], *switches: str) -> dict[str, float]:
    """One run of the load program."""
    given = {
        "url": server.url,
        "key": server.key,
        "model": MODEL,
        **options,
    }
    flags = [*(f"--{name}={value}" for name, value in given.items()), *switches]
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py"), *flags, *server.load_switches],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def compare(case: Case, ours: Server, peer: Server, rounds: int) -> list[dict[str, Any]]:
    """Both in turn, each round with prompts that nobody has seen; warm ones have been seen once."""
    seen: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in case.metrics}
    for number in range(rounds):
        options = {"salt": secrets.token_hex(4), **case.options}
        # Who begins changes, in case the machine warms up or cools down.
        for index in (0, 1) if number % 2 else (1, 0):
            server = (ours, peer)[index]
            if "warm" in case.name:
                measure(server, {**options, "requests": 1})
            result = measure(server, options)
            for name in case.metrics:
                seen[name][index].append(result[name])
        print(f"{peer.name}, {case.name}, round {number + 1}: {seen}", file=sys.stderr, flush=True)
    return [
        row(case.name, name, "s" if "seconds" in name else "tokens/s", peer.name, *seen[name])
        for name in case.metrics
    ]


def main() -> None:
    """Start both, measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python")
    parser.add_argument("--own-server-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--state-dir", type=Path, help="one in which the starter is imported already"
    )
    arguments, rest = parser.parse_known_args()
    if not (arguments.peer_python or arguments.own_server_python):
        parser.error("name the interpreter of one peer at least")
    sys.argv[1:] = rest
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        state = arguments.state_dir or Path(directory, "state")
        found = list(state.glob("base_models/*/*Q4_K_M.gguf"))
        gguf = found[0] if found else import_starter(state)
        us = stack.enter_context(ours(state, arguments.threads))
        pythons = {peer: arguments.peer_python, own_server: arguments.own_server_python}
        peers = [
            stack.enter_context(start(python, gguf, arguments.threads))
            for start, python in pythons.items()
            if python
        ]
        for server in (us, *peers):
            measure(server, {"requests": 1, "clients": 2})
        rows = [
            each
            for case in CASES
            if arguments.only in case.name
            for them in peers
            for each in compare(case, us, them, arguments.rounds)
        ]
    emit("serving", rows)


if __name__ == "__main__":
    main()
