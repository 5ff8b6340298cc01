"""A slow reader gets everything in fewer pieces, up to a limit."""

from __future__ import annotations

import asyncio

import pytest

from appliance.engine import answer
from appliance.engine.answer import Answer
from appliance.engine.protocol import Delta, Finished, Likelihood
from appliance.errors import ChildFailed, SlowClient

FINISHED = Finished(
    id=1,
    finish_reason="stop",
    prompt_tokens=1,
    completion_tokens=1,
    cached_tokens=0,
    prompt_seconds=0.0,
    generation_seconds=0.0,
)


async def read_all(unread: Answer) -> list[Delta | Finished]:
    pieces: list[Delta | Finished] = []
    while not isinstance(pieces[-1] if pieces else None, Finished):
        pieces.append(await unread.read())
    return pieces


def test_pieces_that_nobody_took_are_joined() -> None:
    async def run() -> None:
        unread = Answer(1)
        for text in ("a", "b", "c"):
            unread.add(text)
        unread.end(FINISHED)
        assert await read_all(unread) == [Delta(id=1, text="abc"), FINISHED]

    asyncio.run(run())


def test_a_fast_reader_gets_every_piece_by_itself() -> None:
    async def run() -> None:
        unread = Answer(1)
        for text in ("a", "b"):
            unread.add(text)
            assert await unread.read() == Delta(id=1, text=text)
        reading = asyncio.create_task(unread.read())
        await asyncio.sleep(0)
        assert not reading.done()
        unread.end(FINISHED)
        assert await reading == FINISHED

    asyncio.run(run())


def test_likelihoods_are_joined_with_their_texts_and_may_come_without_one() -> None:
    some = [Likelihood(piece=bytes([n]), logprob=-1.0, top=[]) for n in range(3)]

    async def run() -> None:
        unread = Answer(1)
        unread.add("a", some[:1])
        unread.add("b", some[1:2])
        assert await unread.read() == Delta(id=1, text="ab", likelihoods=some[:2])
        unread.add("", some[2:])
        unread.end(FINISHED)
        assert await read_all(unread) == [Delta(id=1, text="", likelihoods=some[2:]), FINISHED]

    asyncio.run(run())


def test_unread_likelihoods_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_UNREAD_CHARACTERS", 100)
    unlikely = Likelihood(piece=b"a", logprob=-1.0, top=[(b"b", -2.0)])

    async def run() -> None:
        unread = Answer(1)
        unread.add("a", [unlikely])
        assert not unread.ended
        unread.add("a", [unlikely])
        with pytest.raises(SlowClient):
            await unread.read()

    asyncio.run(run())


def test_what_lies_unread_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_UNREAD_CHARACTERS", 100)

    async def run() -> None:
        unread = Answer(1)
        unread.add("x" * 100)
        assert not unread.ended
        unread.add("x")
        assert unread.ended
        unread.add("x" * 100)
        unread.end(FINISHED)
        with pytest.raises(SlowClient) as caught:
            await unread.read()
        assert caught.value.code == "answer_not_read"

    asyncio.run(run())


def test_text_before_a_failure_is_still_read() -> None:
    async def run() -> None:
        unread = Answer(1)
        unread.add("half")
        unread.end(ChildFailed("engine_died", "it died"))
        assert await unread.read() == Delta(id=1, text="half")
        with pytest.raises(ChildFailed, match="it died"):
            await unread.read()

    asyncio.run(run())
