"""Models are loaded when asked for, few at a time, and an engine's death costs one request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.engine import client
from appliance.engine.protocol import Finished, Message, Sampling
from appliance.errors import ApplianceError, Busy, ChildFailed, NotFound, Unavailable
from appliance.serving.names import Target
from appliance.serving.router import Router
from appliance.settings import CHECKOUT
from tests.daemon_process import group_members, wait_for
from tests.fakes import PROGRAMS


class Bench:
    """A router over fake engines, and what they noted."""

    def __init__(self, directory: Path, stall_seconds: float = 30, **limits: object) -> None:
        self.directory = directory
        self.stall_seconds = stall_seconds
        self.router = Router(
            resolve=self.resolve,
            launch=self.launch,
            **{"max_loaded": 2, "max_waiting": 4, "idle_seconds": 1000.0, **limits},
        )

    async def resolve(self, name: str) -> Target:
        path = self.path(name)
        if not path.exists():
            raise NotFound("model_not_found", f"no {name}", param="model")
        return Target(name, path, self.adapter_of(name))

    def adapter_of(self, name: str) -> Path | None:
        """Of "a+x": it is "a" with the adapter "x"."""
        adapter = name.partition("+")[2]
        return self.directory / f"{adapter}.gguf" if adapter else None

    def path(self, name: str) -> Path:
        """Of a model; "a@x" and "a+x" are other names of "a"."""
        return self.directory / f"{re.split('[@+]', name)[0]}.gguf"

    async def launch(self, name: str, path: Path) -> client.Engine:
        return await client.start(
            name,
            path,
            n_ctx=128,
            threads=1,
            slots=4,
            stall_seconds=self.stall_seconds,
            program=PROGRAMS.engine,
        )

    def add(self, name: str, load: str = "") -> None:
        (self.directory / f"{name}.gguf").write_text(json.dumps({"name": name, "load": load}))

    def noted(self, name: str, what: str) -> list[str]:
        log = self.directory / f"{name}.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(what)]

    def pid(self, name: str) -> int:
        """The process that has been the model's engine last."""
        return int(self.noted(name, "load")[-1].split()[1])

    async def ask(self, name: str, content: str = "hello") -> str:
        async with self.router.model(name) as model:
            pieces = []
            messages = [Message(role="user", content=content)]
            async with contextlib.aclosing(model.generate(messages, Sampling())) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        return "".join(pieces)
                    pieces.append(event.text)
        raise AssertionError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(scenario, **limits)`: run a coroutine function on a bench; no engine may be left."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))

    def through(scenario: Callable[[Bench], Awaitable[None]], **limits: object) -> None:
        bench = Bench(tmp_path, **limits)
        for name in "abc":
            bench.add(name)

        async def inside() -> None:
            try:
                async with asyncio.timeout(60):
                    await scenario(bench)
            finally:
                await bench.router.close()

        asyncio.run(inside())
        engines = [int(line.split()[1]) for name in "abc" for line in bench.noted(name, "load")]
        wait_for(lambda: not any(group_members(pid) for pid in engines), "the engines to be gone")

    return through


def test_model_is_loaded_once_however_many_ask_at_once(run):
    async def scenario(bench):
        answers = await asyncio.gather(*(bench.ask("a") for _ in range(4)))
        assert answers == ["a:hello"] * 4
        assert len(bench.noted("a", "load")) == 1
        assert bench.router.loaded() == {"a": 0}

    run(scenario)


def test_model_unused_for_longest_makes_room(run):
    async def scenario(bench):
        for name in ("a", "b", "a", "c"):
            await bench.ask(name)
        assert set(bench.router.loaded()) == {"a", "c"}
        await bench.ask("b")
        assert set(bench.router.loaded()) == {"b", "c"}
        assert [len(bench.noted(name, "load")) for name in "abc"] == [1, 2, 1]

    run(scenario)


def test_model_in_use_is_never_unloaded_to_make_room(run):
    async def scenario(bench):
        for name in "ab":
            await bench.ask(name)
        long = [asyncio.create_task(bench.ask(name, "slow 20")) for name in "ab"]
        while bench.router.loaded() != {"a": 1, "b": 1}:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(bench.ask("c"))
        answers = await asyncio.gather(*long)
        assert all(answer.endswith("19 ") for answer in answers)
        assert await waiting == "c:hello"

    run(scenario)


def test_models_that_are_always_in_use_do_not_keep_another_out(run):
    async def scenario(bench):
        async def keep_asking(name, until):
            count = 0
            while not until.done():
                assert (await bench.ask(name, "slow 3")).endswith("2 ")
                count += 1
            return count

        async def ask_third():
            while len(bench.router.loaded()) < 2:
                await asyncio.sleep(0.01)
            return await bench.ask("c")

        third = asyncio.create_task(ask_third())
        # Two at a time on each: its users are never none by themselves.
        counts = await asyncio.gather(*(keep_asking(name, third) for name in "aabb"))
        assert await third == "c:hello"
        assert all(counts)

    run(scenario)


def test_two_names_of_one_file_share_its_engine(run):
    async def scenario(bench):
        assert await bench.ask("a") == "a:hello"
        assert await bench.ask("a@Q4_K_M") == "a:hello"
        assert len(bench.noted("a", "load")) == 1
        assert bench.router.loaded() == {"a": 0}

    run(scenario)


def test_adapters_of_a_model_share_its_engine(run):
    async def scenario(bench):
        names = ("a+x", "a", "a+y", "a+x")
        answers = await asyncio.gather(*map(bench.ask, names))
        assert list(answers) == [f"{name}:hello" for name in names]
        assert len(bench.noted("a", "load")) == 1

    run(scenario)


def test_idle_model_is_unloaded_and_busy_one_is_not(run):
    async def scenario(bench):
        await bench.ask("a")
        busy = asyncio.create_task(bench.ask("b", "slow 30"))
        while bench.router.loaded().get("b") != 1:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        await bench.router.unload_idle()
        assert set(bench.router.loaded()) == {"b"}
        assert (await busy).endswith("29 ")
        assert await bench.ask("a") == "a:hello"
        assert len(bench.noted("a", "load")) == 2

    run(scenario, idle_seconds=0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_next_request_after_a_death_is_answered(run, number):
    async def scenario(bench):
        await bench.ask("a")
        os.kill(bench.pid("a"), number)
        while bench.router.loaded():
            await asyncio.sleep(0.02)
        assert await bench.ask("a") == "a:hello"
        assert len(bench.noted("a", "load")) == 2

    run(scenario)


def test_engine_that_dies_in_an_answer_fails_that_one_with_its_last_words(run):
    async def scenario(bench):
        with pytest.raises(ChildFailed) as caught:
            await bench.ask("a", "crash")
        assert caught.value.code == "engine_died"
        assert "the fake engine crashes" in caught.value.message
        assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_engine_that_says_nothing_is_ended_and_replaced(run):
    async def scenario(bench):
        await bench.ask("a")
        asked = [asyncio.create_task(bench.ask("a", "hang")) for _ in range(3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {outcome.code for outcome in outcomes} <= {"engine_stalled", "engine_died"}
        assert "engine_stalled" in {outcome.code for outcome in outcomes}
        assert await bench.ask("a") == "a:hello"
        assert len(bench.noted("a", "load")) == 2

    run(scenario, stall_seconds=3)


def test_request_that_waits_behind_a_long_answer_is_no_stall(run):
    async def scenario(bench):
        await bench.ask("a")
        long = asyncio.create_task(bench.ask("a", "slow 100"))
        while bench.router.loaded() != {"a": 1}:
            await asyncio.sleep(0.01)
        assert await bench.ask("a") == "a:hello"
        assert (await long).endswith("99 ")

    run(scenario, stall_seconds=3)


@pytest.mark.parametrize(
    ("load", "code"), [("load-failure", "load_failed"), ("load-crash", "engine_died")]
)
def test_model_that_does_not_load_fails_and_leaves_the_place_free(run, load, code):
    async def scenario(bench):
        bench.add("a", load)
        for _ in range(2):
            with pytest.raises(ChildFailed) as caught:
                await bench.ask("a")
            assert caught.value.code == code
        assert bench.router.loaded() == {}
        bench.add("a")
        assert await bench.ask("a") == "a:hello"

    run(scenario, max_loaded=1)


def test_too_many_waiting_requests_are_told_to_come_back(run):
    async def scenario(bench):
        await bench.ask("a")
        taken = [asyncio.create_task(bench.ask("a", "slow 10")) for _ in range(4)]
        while bench.router.loaded() != {"a": 4}:
            await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await bench.ask("a")
        assert await bench.ask("b") == "b:hello"
        await asyncio.gather(*taken)
        assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_requests_that_wait_for_a_load_are_limited_too(run):
    async def scenario(bench):
        bench.add("a", "load-slow")
        asked = [asyncio.create_task(bench.ask("a")) for _ in range(50)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes.count("a:hello") == 4
        assert sum(isinstance(outcome, Busy) for outcome in outcomes) == 46
        assert bench.router.loaded() == {"a": 0}
        assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_given_up_request_frees_its_place_and_stops_the_work(run):
    async def scenario(bench):
        await bench.ask("a")
        asked = asyncio.create_task(bench.ask("a", "hang"))
        while not bench.noted("a", "generate 2"):
            await asyncio.sleep(0.02)
        asked.cancel()
        await asyncio.wait({asked})
        assert bench.router.loaded() == {"a": 0}
        assert await bench.ask("a") == "a:hello"
        assert bench.noted("a", "cancel") == ["cancel 2"]

    run(scenario)


def test_load_goes_on_when_who_asked_for_it_gives_up(run):
    async def scenario(bench):
        bench.add("a", "load-slow")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bench.ask("a"), 0.05)
        while bench.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.01)
        assert await bench.ask("a") == "a:hello"
        assert len(bench.noted("a", "load")) == 1

    run(scenario)


@pytest.mark.parametrize("closing", [False, True])
def test_unloading_ends_a_load_and_tells_who_waits(run, closing):
    async def scenario(bench):
        bench.add("a", "load-hang")
        asked = asyncio.create_task(bench.ask("a"))
        while not bench.noted("a", "load"):
            await asyncio.sleep(0.01)
        await (bench.router.close() if closing else bench.router.unload(bench.path("a")))
        with pytest.raises(ChildFailed) as caught:
            await asked
        assert caught.value.code == "engine_stopped"
        bench.add("a")
        if closing:
            with pytest.raises(Unavailable):
                await bench.ask("a")
        else:
            assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_everybody_who_waits_for_a_load_is_told_of_its_failure_at_once(run):
    async def scenario(bench):
        bench.add("a", "load-crash")
        asked = [asyncio.create_task(bench.ask("a")) for _ in range(4)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [outcome.code for outcome in outcomes] == ["engine_died"] * 4
        assert len(bench.noted("a", "load")) == 1

    run(scenario)


def test_load_that_has_not_begun_is_given_up_with_its_last_client(run):
    async def scenario(bench):
        bench.add("a", "load-slow")
        first = asyncio.create_task(bench.ask("a"))
        while not bench.noted("a", "load"):
            await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bench.ask("b"), 0.02)
        assert await first == "a:hello"
        assert await bench.ask("c") == "c:hello"
        assert bench.noted("b", "load") == []
        assert await bench.ask("b") == "b:hello"

    run(scenario)


def test_failed_load_that_nobody_awaits_leaves_the_place_free(run):
    async def scenario(bench):
        bench.add("a", "load-crash")
        asked = asyncio.create_task(bench.ask("a"))
        while not bench.noted("a", "load"):
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait({asked})
        bench.add("a")
        while (await asyncio.gather(bench.ask("a"), return_exceptions=True)) != ["a:hello"]:
            await asyncio.sleep(0.01)

    run(scenario, max_loaded=1)


def test_unloading_fails_who_waits(run):
    async def scenario(bench):
        await bench.ask("a")
        asked = asyncio.create_task(bench.ask("a", "hang"))
        while not bench.noted("a", "generate 2"):
            await asyncio.sleep(0.02)
        await bench.router.unload(bench.path("a"))
        with pytest.raises(ApplianceError) as caught:
            await asked
        assert caught.value.code == "engine_stopped"
        await bench.router.unload(bench.path("never loaded"))

    run(scenario)


def test_unknown_name_takes_no_place(run):
    async def scenario(bench):
        with pytest.raises(NotFound):
            await bench.ask("nobody")
        assert bench.router.loaded() == {}

    run(scenario)
