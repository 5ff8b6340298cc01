"""Requests are prepared in turn, apart from reading; what is cancelled before that never arrives."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.engine import protocol
from appliance.engine.intake import Intake, Prepared
from appliance.engine.protocol import Cancel, Failed, Generate, Raw, Sampling
from appliance.errors import InvalidInput

SECONDS = 20.0


class FakeVocabulary:
    """Says what it is at, and goes on when it is let."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.at_work = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def prompt(self, prompt: Raw, _tools: None) -> list[int]:
        assert isinstance(prompt.content, str)
        self.began.append(prompt.content)
        self.at_work.release()
        assert self.go_on.acquire(timeout=SECONDS)
        if prompt.content == "refuse":
            raise InvalidInput("no", "no")
        if prompt.content == "crash":
            raise RuntimeError("boom")
        return [len(prompt.content)]


class Bench:
    def __init__(self) -> None:
        self.intake = Intake()
        self.vocabulary = FakeVocabulary()
        self.ids = 0

    def start(self) -> None:
        prepare: Callable[[Any], Any] = self.intake.prepare
        threading.Thread(target=prepare, args=(self.vocabulary,), daemon=True).start()

    def ask(self, text: str, client: str = "a") -> int:
        self.ids += 1
        request = Generate(
            id=self.ids, prompt=Raw(content=text), sampling=Sampling(), client=client
        )
        self.read(request)
        return self.ids

    def read(self, *requests: protocol.Request) -> None:
        self.intake.read(io.BytesIO(b"".join(map(protocol.encode, requests))))

    def arrived(self) -> Any:
        return self.intake.inbox.get(timeout=SECONDS)

    def let_go_on(self, times: int = 1) -> None:
        self.vocabulary.go_on.release(times)

    def wait_until_at_work(self) -> None:
        assert self.vocabulary.at_work.acquire(timeout=SECONDS)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    # The thread may be left at work.
    made.let_go_on(100)


def test_requests_arrive_with_their_tokens_in_order(bench: Bench) -> None:
    asked = [bench.ask("x" * count) for count in (1, 2, 3)]
    bench.let_go_on(3)
    bench.start()
    arrived = [bench.arrived() for _ in asked]
    assert [(each.request.id, each.prompt) for each in arrived] == [(1, [1]), (2, [2]), (3, [3])]


def test_clients_take_turns(bench: Bench) -> None:
    for text in ("a1", "a2", "a3"):
        bench.ask(text, "a")
    bench.ask("b1", "b")
    bench.let_go_on(4)
    bench.start()
    for _ in range(4):
        bench.arrived()
    assert bench.vocabulary.began == ["a1", "b1", "a2", "a3"]


def test_cancelled_before_it_is_prepared_it_never_arrives(bench: Bench) -> None:
    bench.start()
    first, second, third = (bench.ask(text) for text in ("one", "two", "three"))
    bench.wait_until_at_work()
    # The first is being prepared, the second waits.
    bench.read(Cancel(id=first), Cancel(id=second))
    bench.let_go_on(3)
    arrived = bench.arrived()
    assert isinstance(arrived, Prepared)
    assert arrived.request.id == third
    assert bench.vocabulary.began == ["one", "three"]
    assert bench.intake.inbox.empty()


def test_cancellation_overtakes_what_is_being_prepared(bench: Bench) -> None:
    bench.start()
    first = bench.ask("one")
    bench.let_go_on()
    assert bench.arrived().request.id == first
    bench.ask("slow")
    bench.wait_until_at_work()
    bench.wait_until_at_work()
    bench.read(Cancel(id=first))
    assert bench.arrived() == Cancel(id=first)


@pytest.mark.parametrize(
    ("text", "code", "at_fault"), [("refuse", "no", True), ("crash", "internal_error", False)]
)
def test_what_cannot_be_prepared_fails_alone(
    bench: Bench, text: str, code: str, at_fault: bool
) -> None:
    bench.start()
    bench.ask(text)
    bench.ask("fine")
    bench.let_go_on(2)
    failed, fine = bench.arrived(), bench.arrived()
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code, failed.caller_at_fault) == (1, code, at_fault)
    assert isinstance(fine, Prepared)


def test_torn_request_at_the_end_of_the_connection_is_none(bench: Bench) -> None:
    whole = protocol.encode(Cancel(id=7))
    bench.intake.read(io.BytesIO(whole + whole[:-1]))
    assert bench.arrived() == Cancel(id=7)
    assert bench.intake.inbox.empty()
