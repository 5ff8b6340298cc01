"""Answers of a real engine with the real starter model."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.engine import answer
from appliance.engine.protocol import Delta, Message, Sampling
from appliance.errors import InvalidInput, SlowClient, TooLarge
from tests.engine.asking import ENDLESS, GREEDY, ask, running, user

pytestmark = pytest.mark.llama

CAPITAL = "What is the capital of France?"


def test_the_client_needs_neither_torch_nor_llama_cpp() -> None:
    script = (
        "import sys, appliance.engine.client\n"
        "print([name for name in ('torch', 'llama_cpp', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_model_answers_and_says_what_it_took(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            assert engine.loaded.n_ctx == 1024
            assert engine.loaded.context_length == 8192
            assert engine.loaded.n_vocab == 49152
            reply = await ask(engine, CAPITAL)
            assert reply.text == "The capital of France is Paris."
            assert len(reply.pieces) > 3
            assert reply.finished.finish_reason == "stop"
            assert reply.finished.completion_tokens == 8
            assert reply.finished.prompt_tokens > 10
            assert reply.finished.cached_tokens == 0
            assert engine.pending == 0

    asyncio.run(run())


def test_the_context_is_never_larger_than_the_model_was_trained_for(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=100_000) as engine:
            assert engine.loaded.n_ctx == 8192

    asyncio.run(run())


def test_max_tokens_cuts_the_answer(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            reply = await ask(engine, CAPITAL, max_tokens=3)
            assert reply.text == "The capital of"
            assert reply.finished.finish_reason == "length"
            assert reply.finished.completion_tokens == 3

    asyncio.run(run())


def test_an_answer_without_max_tokens_fills_the_context_and_not_more(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=100) as engine:
            finished = (await ask(engine, ENDLESS)).finished
            assert finished.finish_reason == "length"
            assert finished.prompt_tokens + finished.completion_tokens == 100
            assert (await ask(engine, CAPITAL)).text == "The capital of France is Paris."

    asyncio.run(run())


def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_shown(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            reply = await ask(engine, CAPITAL, stop=["never", "ital of Fr"])
            assert reply.text == "The cap"
            assert reply.finished.finish_reason == "stop"
            almost = await ask(engine, CAPITAL, stop=["France is Paris!"])
            assert almost.text == "The capital of France is Paris."

    asyncio.run(run())


def test_the_same_seed_gives_the_same_text_and_another_seed_another(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:

            async def tell(seed: int | None) -> str:
                sampling = Sampling(temperature=1.0, seed=seed, max_tokens=30)
                return (await ask(engine, "Tell me a story.", sampling)).text

            assert await tell(7) == await tell(7) == await tell(7)
            assert len({await tell(seed) for seed in (7, -7, 2**63 - 1, None, None)}) == 5

    asyncio.run(run())


def test_the_samplers_have_their_effect(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            greedy = (await ask(engine, "Tell me a story.", max_tokens=20)).text
            hot = Sampling(temperature=2.0, seed=1, max_tokens=20)
            assert (await ask(engine, "Tell me a story.", hot)).text != greedy
            for choice_of_one in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
                reply = await ask(engine, "Tell me a story.", hot, **choice_of_one)
                assert reply.text == greedy, choice_of_one
            for penalty in ("presence_penalty", "frequency_penalty"):
                penalised = await ask(engine, "Tell me a story.", max_tokens=20, **{penalty: 2.0})
                assert penalised.text != greedy, penalty

    asyncio.run(run())


def test_a_reused_prefix_gives_the_answer_of_a_fresh_engine(starter_gguf: Path) -> None:
    questions = ["What is 2+2?", "Name the capital city of France.", "What color is the sky?"]

    async def run() -> None:
        async with running(starter_gguf) as engine:
            await ask(engine, CAPITAL)
            reused = [await ask(engine, question, max_tokens=40) for question in questions]
        assert all(reply.finished.cached_tokens >= 10 for reply in reused)
        for question, reply in zip(questions, reused, strict=True):
            async with running(starter_gguf) as engine:
                fresh = await ask(engine, question, max_tokens=40)
            assert fresh.finished.cached_tokens == 0
            assert fresh.text == reply.text

    asyncio.run(run())


def test_the_next_turn_of_a_conversation_decodes_only_what_is_new(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            first = await ask(engine, CAPITAL)
            again = await ask(engine, CAPITAL)
            assert again.finished.cached_tokens == first.finished.prompt_tokens - 1
            turns = [*user(CAPITAL), Message(role="assistant", content=first.text)]
            second = await ask(engine, [*turns, Message(role="user", content="And of Italy?")])
            assert second.finished.cached_tokens >= (
                first.finished.prompt_tokens + first.finished.completion_tokens - 1
            )

    asyncio.run(run())


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=64) as engine:
            with pytest.raises(InvalidInput, match=r"\b64\b.*\b[2-9]\d\d\b") as caught:
                await ask(engine, "word " * 200)
            assert caught.value.code == "context_length_exceeded"
            assert caught.value.param == "messages"
            assert (await ask(engine, CAPITAL)).text == "The capital of France is Paris."

    asyncio.run(run())


def test_what_is_too_large_is_refused_and_the_engine_goes_on(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf) as engine:
            with pytest.raises(TooLarge) as refused:
                await ask(engine, "x" * (17 << 20))
            assert refused.value.code == "frame_too_large"
            with pytest.raises(InvalidInput) as caught:
                await ask(engine, "x" * (9 << 20))
            assert caught.value.code == "prompt_too_large"
            assert engine.pending == 0
            assert (await ask(engine, CAPITAL)).finished.finish_reason == "stop"

    asyncio.run(run())


def test_an_answer_left_early_frees_the_engine_at_once(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=8192) as engine:
            async with contextlib.aclosing(engine.generate(user(ENDLESS), GREEDY)) as pieces:
                assert isinstance(await anext(pieces), Delta)
                assert engine.pending == 1
            assert engine.pending == 0
            async with asyncio.timeout(10):
                assert (await ask(engine, CAPITAL)).text == "The capital of France is Paris."

    asyncio.run(run())


def test_a_request_cancelled_while_it_waits_is_never_answered(starter_gguf: Path) -> None:
    async def run() -> None:
        async with running(starter_gguf, n_ctx=8192) as engine:
            first = asyncio.create_task(ask(engine, "Tell me a story.", max_tokens=60))
            waiting = asyncio.create_task(ask(engine, ENDLESS))
            third = asyncio.create_task(ask(engine, CAPITAL))
            await asyncio.sleep(0.1)
            assert engine.pending == 3
            waiting.cancel()
            async with asyncio.timeout(30):
                assert (await first).finished.completion_tokens == 60
                assert (await third).text == "The capital of France is Paris."
            assert waiting.cancelled()

    asyncio.run(run())


def test_a_long_prompt_is_cancelled_between_its_parts(starter_gguf: Path) -> None:
    from appliance.engine.runtime import N_BATCH

    async def run() -> None:
        async with running(starter_gguf, n_ctx=8192) as engine:
            long = asyncio.create_task(ask(engine, "word " * 6 * N_BATCH, max_tokens=1))
            await asyncio.sleep(0.05)
            long.cancel()
            reply = await ask(engine, "word " * 5 * N_BATCH + "?", max_tokens=1)
            # Had it not been cancelled, all of the second prompt but its end would be cached.
            assert reply.finished.cached_tokens in (0, N_BATCH)

    asyncio.run(run())


def test_a_reader_that_does_not_read_loses_its_answer_and_delays_no_other(
    starter_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "MAX_UNREAD_CHARACTERS", 50)

    async def run() -> None:
        async with (
            running(starter_gguf, n_ctx=8192) as engine,
            contextlib.aclosing(engine.generate(user(ENDLESS), GREEDY)) as pieces,
        ):
            assert isinstance(await anext(pieces), Delta)
            async with asyncio.timeout(10):
                assert (await ask(engine, CAPITAL)).text == "The capital of France is Paris."
            with pytest.raises(SlowClient):
                await anext(pieces)

    asyncio.run(run())
