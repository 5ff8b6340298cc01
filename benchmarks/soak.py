"""Many clients for long: answers of all kinds, cut, cancelled, and with the engine killed under them.

.venv/bin/python benchmarks/soak.py [--requests 10000] [--clients 32] [--kills 0] [--state-dir DIRECTORY]

Says how every request ended, how long it took, whether greedy answers are those given alone, and how much
memory daemon and engine hold at the beginning and at the end. Fails if an answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving import MODEL, Server, import_starter, ours

QUESTIONS = [
    f"What is the capital of {country}?"
    for country in ("France", "Italy", "Japan", "Peru", "Egypt")
] + [
    "What is 2+2?",
    "What color is the sky?",
    "Who wrote Hamlet?",
    "Name a fruit.",
    "Count to five.",
]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "size": {"enum": [1, 2, 3]}},
    "required": ["kind", "size"],
}
KINDS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "top_k": 40},
    "stopped": {"temperature": 0.0, "stop": ["e"]},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "max_tokens": 40,
    },
    "several": {"n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 4},
    "long": {"temperature": 0.0, "max_tokens": 1},
    "too long": {"max_tokens": 1},
    "cancelled": {"temperature": 0.0, "max_tokens": 200},
}


class Soak:
    """One run against one server."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.choose = random.Random(seed)
        self.ends: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.alone: dict[str, str] = {}
        self.other_texts = 0
        self.greedy = 0

    async def post(
        self, body: dict[str, Any], leave_after_bytes: int | None = None
    ) -> tuple[int, str]:
        """Status and body of an answer; leaves in the midst of it if asked to."""
        url = urlsplit(self.server.url)
        data = json.dumps({"model": MODEL, **body}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.server.key}\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(head.encode() + data)
            if leave_after_bytes is not None:
                return 0, (await reader.read(leave_after_bytes)).decode(errors="replace")
            answer = (await reader.read()).decode()
        finally:
            writer.close()
        head, _, rest = answer.partition("\r\n\r\n")
        return int(head.split(" ")[1]), rest

    async def one(self) -> None:
        """A request of a random kind."""
        kind = self.choose.choice(list(KINDS))
        question = self.choose.choice(QUESTIONS)
        if kind in ("long", "too long"):
            question = "word " * self.choose.randrange(
                *((400, 900) if kind == "long" else (9000, 9500))
            )
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.choose.randrange(1, 13),
            **KINDS[kind],
        }
        began = time.perf_counter()
        if kind == "cancelled":
            body["stream"] = True
            await self.post(body, self.choose.choice([0, 1, 300, 1500]))
            self.ends["cancelled"] += 1
            return
        status, text = await self.post(body)
        self.seconds.append(time.perf_counter() - began)
        self.ends[self.end(kind, question, body, status, text)] += 1
        if status == 503:
            # As `Retry-After` asks, at the least: else all requests are gone while an engine starts.
            await asyncio.sleep(1)

    def end(self, kind: str, question: str, body: dict[str, Any], status: int, text: str) -> str:
        """How a request ended, in a word; raises AssertionError for an answer that is wrong."""
        if status != 200:
            code = json.loads(text[text.index("{") : text.rindex("}") + 1])["error"]["code"]
            if kind != "too long" or status != 400:
                # Only for its engine's death may a request fail that could have been answered.
                assert (status, code) in ((500, "engine_died"), (503, "engine_restarting")), text
            return f"{kind}: {status} {code}"
        answer = json.loads(text[text.index("{") : text.rindex("}") + 1])
        contents = [choice["message"]["content"] for choice in answer["choices"]]
        assert len(contents) == body.get("n", 1)
        if kind == "schema":
            found = json.loads(contents[0])
            assert found["kind"] in ("a", "b") and found["size"] in (1, 2, 3), text
        if kind == "stopped":
            assert "e" not in contents[0], text
        if kind == "several":
            for choice in answer["choices"]:
                tokens = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
                assert tokens.decode(errors="replace") == choice["message"]["content"], text
        if kind == "greedy":
            self.greedy += 1
            self.other_texts += not self.alone[question].startswith(contents[0])
        return f"{kind}: answered"

    async def ask_alone(self) -> None:
        """What the model answers to each question when nobody else asks."""
        for question in QUESTIONS:
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0.0}
            _, text = await self.post({**body, "max_tokens": 13})
            answer = json.loads(text[text.index("{") : text.rindex("}") + 1])
            self.alone[question] = answer["choices"][0]["message"]["content"]

    async def run(self, requests: int, clients: int) -> None:
        """All requests, so many at a time."""
        left = iter(range(requests))

        async def client() -> None:
            for number in left:
                await self.one()
                if number % 1000 == 999:
                    print(f"{number + 1} requests, {memory(self.server.pid)}", flush=True)

        await asyncio.gather(*(client() for _ in range(clients)))


def engines(daemon: int) -> list[int]:
    """Process ids of a daemon's engines."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if b"appliance.engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def memory(daemon: int) -> str:
    """Resident memory, in MiB."""
    told = []
    for name, pids in (("daemon", [daemon]), ("engine", engines(daemon))):
        for pid in pids:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                (kib,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
                told.append(f"{name} {int(kib) / 1024:.0f} MiB")
    return ", ".join(told)


async def kill(server: Server, kills: int, seconds: float, killed: list[int]) -> None:
    """Kill the engine now and then, and note whom."""
    while len(killed) < kills:
        await asyncio.sleep(random.uniform(0.2, 2) * seconds)
        for pid in engines(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)


async def soak(server: Server, arguments: argparse.Namespace) -> None:
    """Run, and tell."""
    run = Soak(server, arguments.seed)
    await run.ask_alone()
    print(f"at first: {memory(server.pid)}", flush=True)
    killed: list[int] = []
    killing = asyncio.create_task(kill(server, arguments.kills, arguments.kill_seconds, killed))
    await run.run(arguments.requests, arguments.clients)
    killing.cancel()
    print(f"at last: {memory(server.pid)}; engines killed: {len(killed)}")
    for end, count in sorted(run.ends.items()):
        print(f"  {end}: {count}")
    ordered = sorted(run.seconds)
    p99 = ordered[int(0.99 * len(ordered))]
    print(
        f"seconds: p50 {statistics.median(ordered):.2f}, p99 {p99:.2f}, longest {ordered[-1]:.2f}"
    )
    print(f"greedy answers unlike the one given alone: {run.other_texts} of {run.greedy}")


def main() -> None:
    """Start the appliance and load it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kill-seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        state = arguments.state_dir or Path(directory, "state")
        if not list(state.glob("base_models/*/*Q4_K_M.gguf")):
            import_starter(state)
        with ours(state, arguments.threads) as server:
            asyncio.run(soak(server, arguments))


if __name__ == "__main__":
    main()
