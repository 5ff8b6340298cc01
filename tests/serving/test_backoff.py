"""An engine that dies comes back by itself: at once, and where it dies again and again, ever later."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ChildFailed, Unavailable
from appliance.serving import backoff, router
from appliance.serving.backoff import Backoff
from tests.serving.test_making_way import LeasingBench
from tests.serving.test_router import Bench, run

__all__ = ["run"]

FILE = Path("a.gguf")
NEVER_SECONDS = 1000.0


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deaths(clock: Clock) -> Backoff:
    return Backoff(clock)


@pytest.fixture
def second_start_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second death in a row a model does not come back in this test."""
    monkeypatch.setattr(backoff, "SECOND_START_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(backoff, "LONGEST_WAIT_SECONDS", NEVER_SECONDS)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "SECOND_START_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_WAIT_SECONDS", 0.1)


async def kill(bench: Bench, name: str = "a", number: signal.Signals = signal.SIGKILL) -> None:
    """Kill the model's engine, and return when its death has been counted."""
    os.kill(bench.pid(name), number)
    while bench.path(name) in bench.router._slots.paths():
        await asyncio.sleep(0.01)


async def settled(bench: Bench) -> None:
    """Return when nothing is being loaded."""
    while bench.router._loads:
        await asyncio.sleep(0.01)


# --- when ---


def test_first_start_is_at_once_and_each_further_one_later(deaths: Backoff) -> None:
    waits = [deaths.died(FILE, "boom") for _ in range(9)]
    assert waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert max(deaths.died(FILE, "boom") for _ in range(2000)) == 30
    assert deaths.died(Path("other"), "boom") == 0


def test_wait_passes(deaths: Backoff, clock: Clock) -> None:
    assert deaths.seconds_left(FILE) == 0
    for _ in range(3):
        deaths.died(FILE, "boom")
    assert deaths.seconds_left(FILE) == 1
    clock.seconds += 0.75
    assert deaths.seconds_left(FILE) == 0.25
    clock.seconds += 100
    assert deaths.seconds_left(FILE) == 0


@pytest.mark.parametrize(("served", "wait_seconds"), [(False, 16), (True, 0)])
def test_death_of_an_engine_that_has_served_is_a_first_one(
    deaths: Backoff, served: bool, wait_seconds: float
) -> None:
    for _ in range(6):
        deaths.died(FILE, "boom")
    assert deaths.died(FILE, "boom", served=served) == wait_seconds


def test_death_of_a_file_that_was_forgotten_is_a_first_one(deaths: Backoff) -> None:
    for _ in range(6):
        deaths.died(FILE, "boom")
    deaths.forget(FILE)
    assert deaths.died(FILE, "boom") == 0


def test_who_would_wait_long_is_told_when_to_come_back(deaths: Backoff, clock: Clock) -> None:
    for _ in range(5):
        deaths.died(FILE, "boom")
        deaths.refuse_if_far("a", FILE)
    deaths.died(FILE, "killed by SIGSEGV")
    clock.seconds += 0.5
    with pytest.raises(Unavailable, match="SIGSEGV") as caught:
        deaths.refuse_if_far("a", FILE)
    assert (caught.value.code, caught.value.retry_after_seconds) == ("engine_restarting", 7.5)
    deaths.forget(FILE)
    deaths.refuse_if_far("a", FILE)


# --- with engines ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_dead_engine_comes_back_though_nobody_asks(run, second_start_never, number):
    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        await kill(bench, number=number)
        while bench.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.01)
        assert len(bench.noted("a", "load")) == 2
        assert len(bench.noted("a", "asked")) == 1

    run(scenario)


def test_hung_engine_comes_back_though_nobody_asks(run, second_start_never):
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ChildFailed) as caught:
            await bench.ask("a", "hang")
        assert caught.value.code == "engine_stalled"
        while bench.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.01)
        assert len(bench.noted("a", "load")) == 2

    run(scenario, stall_seconds=3)


def test_every_request_is_answered_or_told_of_a_death_while_an_engine_is_killed_20_times(
    run, short_waits
):
    async def scenario(bench: Bench) -> None:
        done = asyncio.Event()
        outcomes: list[str] = []

        async def keep_asking() -> None:
            while not done.is_set():
                try:
                    outcomes.append(await bench.ask("a", "slow 1"))
                except ApplianceError as exc:
                    outcomes.append(exc.code)

        askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for kills in range(1, 21):
            while "a" not in bench.router.loaded():
                await asyncio.sleep(0.01)
            await kill(bench)
            assert len(bench.noted("a", "load")) in (kills, kills + 1)
        done.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*askers)
        assert set(outcomes) == {"0 ", "engine_died"}
        await settled(bench)
        assert bench.router.loaded() == {"a": 0}
        assert len(bench.noted("a", "load")) == 21
        assert await bench.ask("a") == "a:hello"

    run(scenario)


@pytest.mark.parametrize("load", ["load-crash", "load-failure"])
def test_model_that_never_loads_starts_no_process_for_each_request(run, second_start_never, load):
    async def scenario(bench: Bench) -> None:
        bench.add("a", load)
        codes = []
        for _ in range(25):
            asked = [asyncio.create_task(bench.ask("a")) for _ in range(4)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            codes += [outcome.code for outcome in outcomes]
        code = {"load-crash": "engine_died", "load-failure": "load_failed"}[load]
        assert codes == [code] * 8 + ["engine_restarting"] * 92
        assert len(bench.noted("a", "load")) == 2
        # It takes no other along, and a file that is repaired and unloaded begins anew.
        assert await bench.ask("b") == "b:hello"
        bench.add("a")
        await bench.router.unload(bench.path("a"))
        assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_requests_wait_for_a_start_that_is_near(run, monkeypatch):
    monkeypatch.setattr(backoff, "SECOND_START_SECONDS", 0.3)

    async def scenario(bench: Bench) -> None:
        bench.add("a", "load-crash")
        for _ in range(2):
            with pytest.raises(ChildFailed):
                await bench.ask("a")
        bench.add("a")
        asked = [asyncio.create_task(bench.ask("a")) for _ in range(3)]
        await asyncio.sleep(0)
        assert await bench.ask("b") == "b:hello"
        assert await asyncio.gather(*asked) == ["a:hello"] * 3
        assert len(bench.noted("a", "load")) == 3

    run(scenario)


def test_start_that_fails_is_tried_again_though_nobody_asks(run, short_waits):
    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        bench.add("a", "load-crash")
        await kill(bench)
        while len(bench.noted("a", "load")) < 4:
            await asyncio.sleep(0.01)
        bench.add("a")
        while bench.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.01)

    run(scenario)


def test_load_that_never_succeeded_is_not_tried_again_by_itself(run, short_waits):
    async def scenario(bench: Bench) -> None:
        bench.add("a", "load-crash")
        with pytest.raises(ChildFailed):
            await bench.ask("a")
        await settled(bench)
        assert len(bench.noted("a", "load")) == 1

    run(scenario)


def test_memory_is_free_while_a_dead_engine_waits_and_is_taken_anew(run, second_start_never):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("ab")
        await kill(bench)
        await settled(bench)
        assert leasing.holders() == {"a", "b"}
        assert len(leasing.ledger.holdings()) == 2
        await kill(bench)
        assert leasing.holders() == {"b"}
        with pytest.raises(Unavailable):
            await bench.ask("a")
        assert await bench.ask("b") == "b:hello"
        assert len(bench.noted("b", "load")) == 1

    run(scenario)


def test_no_other_model_goes_for_one_that_starts_again_by_itself(run, monkeypatch):
    monkeypatch.setattr(backoff, "SECOND_START_SECONDS", 1.0)

    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        for _ in range(2):
            await settled(bench)
            await kill(bench)
        await bench.ask("b")
        await settled(bench)
        assert bench.router.loaded() == {"b": 0}
        assert len(bench.noted("a", "load")) == 2
        # It comes back like one that was unloaded for others.
        await bench.router.unload(bench.path("b"))
        bench.router.restore()
        while bench.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.01)

    run(scenario, max_loaded=1)


def test_engine_that_answers_between_its_deaths_is_never_waited_for(run, second_start_never):
    async def scenario(bench: Bench) -> None:
        for _ in range(4):
            assert await bench.ask("a") == "a:hello"
            await kill(bench)
        assert await bench.ask("a") == "a:hello"

    run(scenario)


def test_engine_that_lives_between_its_deaths_is_never_waited_for(
    run, second_start_never, monkeypatch
):
    monkeypatch.setattr(router, "SERVED_SECONDS", 0.2)

    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        for _ in range(3):
            await settled(bench)
            await asyncio.sleep(0.3)
            await kill(bench)
        assert await bench.ask("a") == "a:hello"

    run(scenario)


async def by_hand(bench: Bench) -> None:
    await bench.router.unload(bench.path("a"))


async def for_another(bench: Bench) -> None:
    await bench.ask("b")


async def for_a_job(bench: Bench) -> None:
    await LeasingBench(bench).unload_for_a_job()


async def at_the_end(bench: Bench) -> None:
    await bench.router.close()


@pytest.mark.parametrize("unload", [by_hand, for_another, for_a_job, at_the_end])
def test_unloading_is_no_death(run, unload):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        await unload(bench)
        await settled(bench)
        assert "a" not in bench.router.loaded()
        assert len(bench.noted("a", "load")) == 1
        assert bench.router._backoff._deaths == {}

    run(scenario, max_loaded=1)


def test_engine_that_died_idle_stays_away(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        await asyncio.sleep(0.2)
        await kill(bench)
        await settled(bench)
        assert bench.router.loaded() == {}
        assert len(bench.noted("a", "load")) == 1
        assert await bench.ask("a") == "a:hello"

    run(scenario, idle_seconds=0.1)


def test_unloading_ends_the_wait_for_a_start(run, second_start_never):
    async def scenario(bench: Bench) -> None:
        await bench.ask("a")
        for _ in range(2):
            await settled(bench)
            await kill(bench)
        assert bench.router._loads
        await bench.router.unload(bench.path("a"))
        assert not bench.router._loads
        assert await bench.ask("a") == "a:hello"

    run(scenario)
