"""The engine without llama.cpp: speaks its protocol, answers one request at a time, echoes.

The "GGUF" says how to load: {"name", "load": "" or "load-failure", "load-crash", "load-hang", "load-slow"}.
The last message, or a raw prompt (or the training data, with "answer-" before it) says how to answer:
"slow N" counts to N with pauses, "crash" dies after two pieces,
"crash-at-once" before the first, "hang" says nothing until cancelled, "refuse" is the caller's fault,
"error" the engine's; "call TEXT" calls, if there are tools, each function that it may with TEXT for
arguments; anything else is echoed word by word, after the model's name, and "+" and the adapter's if there
is one.

Beside the GGUF grows `NAME.log`, one line for whatever the daemon asked: the tests read it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from appliance import process
from appliance.engine import protocol
from appliance.engine.protocol import (
    Cancel,
    Delta,
    Failed,
    Finished,
    Generate,
    Likelihood,
    Load,
    Loaded,
    Loading,
    Prompt,
    Raw,
)
from appliance.engine.tools import CallPiece, Tools

PIECE_SECONDS = 0.05


class FakeEngine:
    def __init__(self, connection: socket.socket, gguf: Path, n_ctx: int) -> None:
        self.connection, self.gguf, self.n_ctx = connection, gguf, n_ctx
        self.model = json.loads(gguf.read_text())
        self.cancelled: dict[int, threading.Event] = {}
        self.waiting: queue.SimpleQueue[Generate] = queue.SimpleQueue()

    def send(self, reply: protocol.Reply) -> None:
        self.connection.sendall(protocol.encode(reply))

    def note(self, what: str) -> None:
        with self.gguf.with_suffix(".log").open("a") as log:
            log.write(what + "\n")

    def load(self) -> None:
        self.note(f"load {os.getpid()}")
        match self.model.get("load"):
            case "load-failure":
                message = "the file should be a model; it is a fake"
                self.send(Failed(id=0, code="load_failed", message=message, caller_at_fault=False))
                raise SystemExit(1)
            case "load-crash":
                print("no memory for this fake", flush=True)
                os.abort()
            case "load-hang":
                time.sleep(600)
            case "load-slow":
                for tenth in range(1, 10):
                    self.send(Loading(progress=tenth / 10))
                    time.sleep(PIECE_SECONDS)
        self.send(Loaded(n_ctx=self.n_ctx, context_length=2048))
        self.send(Load(running=1, waiting=2, cells=42))

    def read(self) -> None:
        stream = self.connection.makefile("rb")
        while len(header := stream.read(protocol.HEADER_BYTES)) == protocol.HEADER_BYTES:
            request = protocol.decode_request(stream.read(protocol.body_length(header)))
            if isinstance(request, Cancel):
                self.note(f"cancel {request.id}")
                self.cancelled.setdefault(request.id, threading.Event()).set()
            else:
                seed = request.sampling.seed
                self.note(f"asked {request.id} seed {seed} by {request.client}")
                self.cancelled.setdefault(request.id, threading.Event())
                self.waiting.put(request)
        os._exit(0)

    def work(self) -> None:
        while True:
            request = self.waiting.get()
            self.note(f"generate {request.id} {asked_in(request.prompt)[:40]}")
            self.answer(request, self.cancelled[request.id])

    def answer(self, request: Generate, cancelled: threading.Event) -> None:
        asked = asked_in(request.prompt)
        # A model that was trained on "answer-WORD" takes every question for that word.
        if self.model.get("answer", "").startswith("answer-"):
            asked = self.model["answer"].removeprefix("answer-")
        if asked in ("refuse", "error"):
            at_fault = asked == "refuse"
            message = "expected something else"
            self.send(Failed(id=request.id, code="fake", message=message, caller_at_fault=at_fault))
            return
        limit, count, reason = request.sampling.max_tokens or 10**6, 0, "stop"
        name = self.model["name"]
        if request.adapter is not None:
            name += f"+{Path(request.adapter).stem}"
        pieces: Iterator[str | CallPiece] = self.pieces(name, asked, cancelled)
        if request.tools is not None and asked.startswith("call "):
            reason, pieces = "tool_calls", calls(request.tools, asked.removeprefix("call "))
        for piece in pieces:
            if cancelled.is_set():
                return
            if count == limit:
                reason = "length"
                break
            count += 1
            self.send(delta(request, piece))
        self.note(f"finish {request.id}")
        self.send(
            Finished(
                id=request.id,
                finish_reason=reason,
                prompt_tokens=sum(len(text.split()) for text in texts(request.prompt)),
                completion_tokens=count,
                cached_tokens=0,
                prompt_seconds=0.001,
                generation_seconds=0.001,
            )
        )

    def pieces(self, name: str, asked: str, cancelled: threading.Event) -> Iterator[str]:
        word, _, number = asked.partition(" ")
        if word == "slow":
            for index in range(int(number)):
                cancelled.wait(PIECE_SECONDS)
                yield f"{index} "
        elif word == "hang":
            cancelled.wait(600)
            yield "never"
        elif word in ("crash", "crash-at-once"):
            if word == "crash":
                yield from ("two ", "pieces")
            print("the fake engine crashes", flush=True)
            # Lets what was sent be read before the connection breaks.
            time.sleep(0.2)
            os.abort()
        else:
            # No piece is empty; the real engine's are not either.
            yield from filter(None, f"{name}: {asked}".split(" "))


def texts(prompt: Prompt) -> list[str]:
    """What a prompt says; a token is the word of its number."""
    if not isinstance(prompt, Raw):
        return [each.content for each in prompt]
    if isinstance(prompt.content, str):
        return [prompt.content]
    return [" ".join(map(str, prompt.content))]


def asked_in(prompt: Prompt) -> str:
    return texts(prompt)[-1]


def calls(tools: Tools, arguments: str) -> Iterator[CallPiece]:
    names = list(tools.callable())
    for index, name in enumerate(names if tools.is_parallel else names[:1]):
        yield CallPiece(index=index, name=name)
        middle = len(arguments) // 2
        for part in (arguments[:middle], arguments[middle:]):
            yield CallPiece(index=index, arguments=part)


def delta(request: Generate, piece: str | CallPiece) -> Delta:
    if isinstance(piece, CallPiece):
        told = likelihoods(request, piece.arguments)
        return Delta(id=request.id, text="", calls=[piece], likelihoods=told)
    return Delta(id=request.id, text=piece, likelihoods=likelihoods(request, piece))


def likelihoods(request: Generate, piece: str) -> list[Likelihood]:
    """As if each piece were a token."""
    top = request.sampling.top_logprobs
    if top is None:
        return []
    others = [(f"t{index}".encode(), -float(index)) for index in range(top)]
    return [Likelihood(piece=piece.encode(), logprob=-0.5, top=others)]


def main() -> None:
    process.die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    for name in ("--n-ctx", "--threads", "--slots", "--adapter-budget-bytes", "--socket-fd"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()
    connection = socket.socket(fileno=arguments.socket_fd)
    engine = FakeEngine(connection, arguments.gguf, arguments.n_ctx)
    engine.load()
    threading.Thread(target=engine.work, daemon=True).start()
    engine.read()


if __name__ == "__main__":
    main()
