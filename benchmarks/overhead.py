"""What stands between an engine and its clients: a token's time on the way, and the daemon's CPU time.

The daemon is the real one; its engine is this file, which speaks the engine's protocol and, in place of
text, says when it said it. Every step gives each stream one token, as a real engine's does, at its pace.

    PYTHONPATH=. .venv/bin/python benchmarks/overhead.py [--streams 8] [--steps-per-second 17]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec

from appliance import daemon, logs, process, settings
from appliance.engine import protocol
from appliance.engine.protocol import Delta, Finished, Generate, Loaded
from tests.daemon_process import BASE, add_base

PACE_VARIABLE = "BENCHMARK_STEPS_PER_SECOND"
TOKENS = 200
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


# --- the engine ---


def engine() -> None:
    """Answer every request with TOKENS times at which it was said."""
    process.die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-fd", type=int, required=True)
    descriptor = parser.parse_known_args(sys.argv[2:])[0].socket_fd
    connection = socket.socket(fileno=descriptor)
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, asked), daemon=True).start()
    loaded = Loaded(n_ctx=2048, context_length=2048)
    connection.sendall(protocol.encode(loaded))
    said: dict[int, int] = {}
    pace_seconds = 1 / float(os.environ[PACE_VARIABLE])
    while True:
        if not said:
            said[asked.get()] = 0
        while not asked.empty():
            said[asked.get()] = 0
        time.sleep(pace_seconds)
        connection.sendall(b"".join(protocol.encode(each) for each in _step(said)))


def _read(connection: socket.socket, asked: queue.SimpleQueue[int]) -> None:
    stream = connection.makefile("rb")
    while header := stream.read(protocol.HEADER_BYTES):
        request = protocol.decode_request(stream.read(protocol.body_length(header)))
        if isinstance(request, Generate):
            asked.put(request.id)
    os._exit(0)


def _step(said: dict[int, int]) -> list[protocol.Reply]:
    replies: list[protocol.Reply] = []
    for request_id in list(said):
        if said[request_id] < TOKENS:
            said[request_id] += 1
            replies.append(Delta(id=request_id, text=f"{time.monotonic_ns()} "))
        else:
            del said[request_id]
            replies.append(_finished(request_id))
    return replies


def _finished(request_id: int) -> Finished:
    return Finished(
        id=request_id,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=TOKENS,
        cached_tokens=0,
        prompt_seconds=0.0,
        generation_seconds=0.0,
    )


# --- the daemon ---


def serve() -> None:
    """`appliance serve` with that engine."""
    given = settings.load()
    logs.configure(given.log_level)
    own = (sys.executable, str(Path(__file__).resolve()), "engine")
    programs = msgspec.structs.replace(daemon.PROGRAMS, engine=own)
    asyncio.run(daemon.serve(given, programs))


# --- the clients ---


async def listen(client: httpx.AsyncClient) -> list[float]:
    """The seconds that each token of one stream was on its way."""
    body = {"model": BASE, "messages": [{"role": "user", "content": "say"}], "stream": True}
    seconds = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            now = time.monotonic_ns()
            if line.startswith("data: {"):
                delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                if delta.get("content"):
                    seconds.append((now - int(delta["content"])) / 1e9)
    assert len(seconds) == TOKENS
    return seconds


async def measure(url: str, key: str, pid: int, streams: int) -> dict[str, Any]:
    """All streams at once, after one that loads the model."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        await listen(client)
        cpu, start = cpu_seconds(pid), time.monotonic()
        every = await asyncio.gather(*(listen(client) for _ in range(streams)))
        cpu, wall = cpu_seconds(pid) - cpu, time.monotonic() - start
    seconds = sorted(each for stream in every for each in stream)
    return {
        "tokens": len(seconds),
        "tokens_per_second": len(seconds) / wall,
        "way_p50_ms": statistics.median(seconds) * 1000,
        "way_p95_ms": seconds[int(0.95 * len(seconds))] * 1000,
        "daemon_share_of_a_core": cpu / wall,
        "daemon_microseconds_per_token": cpu / len(seconds) * 1e6,
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, without its children (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def main() -> None:
    """Run the daemon, listen, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--steps-per-second", type=float, default=17.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, socket.socket() as free:
        state = Path(directory) / "state"
        add_base(state)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        variables = {
            **os.environ,
            "APPLIANCE_STATE_DIR": str(state),
            "APPLIANCE_CONFIG": os.devnull,
            "APPLIANCE_PORT": str(port),
            "APPLIANCE_PROFILE": "cpu",
            PACE_VARIABLE: str(arguments.steps_per_second),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        child = subprocess.Popen([sys.executable, __file__, "serve"], env=variables)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url)
            key = (state / "admin.key").read_text().strip()
            found = asyncio.run(measure(url, key, child.pid, arguments.streams))
        finally:
            child.terminate()
            child.wait()
    print(json.dumps(found, indent=2))


def wait_until_up(url: str) -> None:
    """Raises TimeoutError after half a minute."""
    for _ in range(300):
        try:
            httpx.get(f"{url}/healthz")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(url)


if __name__ == "__main__":
    {"engine": engine, "serve": serve}.get(next(iter(sys.argv[1:]), ""), main)()
