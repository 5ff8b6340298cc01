"""An alias changes its meaning in use: no request fails, and a model that does not answer replaces none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.engine import client
from appliance.engine.protocol import Finished, Message, Sampling
from appliance.errors import Busy, ChildFailed, NoMemory, NotFound
from appliance.hardware import lease
from appliance.hardware.lease import Ledger
from appliance.serving import names
from appliance.serving.aliases import Aliases
from appliance.serving.router import Router
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests.daemon_process import add_base, group_members, wait_for
from tests.fakes import PROGRAMS

# Of the device's memory: two of the three models fit.
CAPACITY, MODEL = 100, 40
MODELS = ("old", "new", "other")
BOTH_FIT = {"max_loaded": 2}
ONE_FITS = {"max_loaded": 1}
ONE_FITS_IN_MEMORY = {"max_loaded": 9, "model_bytes": 60}
every_room = pytest.mark.parametrize(
    "room", [BOTH_FIT, ONE_FITS, ONE_FITS_IN_MEMORY], ids=["both", "one", "memory"]
)
one_fits = pytest.mark.parametrize("room", [ONE_FITS, ONE_FITS_IN_MEMORY], ids=["one", "memory"])


class Bench:
    """Aliases over a store, a router and fake engines, which take a lease each."""

    def __init__(
        self, state_dir: Path, max_loaded: int = 2, model_bytes: int = MODEL, max_waiting: int = 50
    ) -> None:
        self.state_dir = state_dir
        for name in MODELS:
            add_base(state_dir, name)
        self.store = Store(state_dir)
        self.ledger = Ledger(state_dir / "leases", CAPACITY)
        self.model_bytes = model_bytes
        self.router = Router(
            resolve=self.resolve,
            launch=self.launch,
            max_loaded=max_loaded,
            max_waiting=50,
            idle_seconds=1000.0,
        )
        self.aliases = Aliases(self.store, self.router, max_waiting=max_waiting)

    async def resolve(self, name: str) -> names.Target:
        return names.target(self.state_dir, self.store.catalog.get, name)

    async def launch(self, name: str, path: Path) -> client.Engine:
        with await lease.grant(self.ledger, name, "serving", self.model_bytes) as held:
            return await client.start(
                name,
                path,
                n_ctx=128,
                threads=1,
                slots=4,
                adapter_budget_bytes=1 << 20,
                program=PROGRAMS.engine,
                pass_fds=(held.descriptor,),
            )

    def set_load(self, name: str, load: str) -> None:
        """How the model behaves when it is loaded next."""
        path = self.state_dir / "base_models" / name / "model-Q4_K_M.gguf"
        path.write_text(f'{{"name": "{name}", "load": "{load}"}}')

    def noted(self, name: str, what: str) -> list[str]:
        log = self.state_dir / "base_models" / name / "model-Q4_K_M.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(what)]

    def loads(self) -> list[int]:
        """How often each model has been loaded."""
        return [len(self.noted(name, "load")) for name in MODELS]

    def meaning(self) -> str:
        return self.store.aliases.get("alias").model

    async def ask(self, name: str = "alias", content: str = "hello") -> str:
        async with contextlib.AsyncExitStack() as stack:
            async with self.aliases.meaning(name) as model:
                answering = await stack.enter_async_context(self.router.model(model))
            messages, pieces = [Message(role="user", content=content)], []
            events = answering.generate(messages, Sampling())
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Finished):
                        return "".join(pieces)
                    pieces.append(event.text)
        raise AssertionError

    def begin(self, content: str, name: str = "alias") -> asyncio.Task[str]:
        return asyncio.create_task(self.ask(name, content))

    def change(self, model: str = "new") -> asyncio.Task[object]:
        return asyncio.create_task(self.aliases.put("alias", model))

    async def until(self, reached: Callable[[], object]) -> None:
        while not reached():
            await asyncio.sleep(0.01)

    @property
    def held(self) -> int:
        return sum(held.total() for held in self.aliases._admission._held.values())


Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def run(state_dir, monkeypatch):
    """`run(scenario, **limits)`: on a bench whose alias means `old`; no engine may be left."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))

    def through(scenario: Scenario, **limits: int) -> None:
        bench = Bench(state_dir, **limits)

        async def inside() -> None:
            try:
                await bench.aliases.put("alias", "old")
                async with asyncio.timeout(60):
                    await scenario(bench)
            finally:
                await bench.aliases.stop()
                await bench.router.close()

        asyncio.run(inside())
        bench.store.close()
        engines = [int(line.split()[1]) for name in MODELS for line in bench.noted(name, "load")]
        wait_for(lambda: not any(group_members(pid) for pid in engines), "the engines to be gone")
        assert bench.ledger.holdings() == []

    return through


def test_nothing_is_loaded_for_an_alias_whose_model_is_not(run):
    async def scenario(bench: Bench) -> None:
        bench.set_load("new", "load-crash")
        await bench.ask("other")
        assert (await bench.aliases.put("alias", "new")).model == "new"
        assert (await bench.aliases.put("second", "new")).model == "new"
        assert bench.loads() == [0, 0, 1]
        assert bench.router.loaded() == {"other": 0}

    run(scenario)


@every_room
def test_loaded_model_is_replaced_by_one_that_has_answered(run, room):
    async def scenario(bench: Bench) -> None:
        assert await bench.ask() == "old:hello"
        await bench.aliases.put("alias", "new")
        assert bench.meaning() == "new"
        assert len(bench.noted("new", "finish")) == 1
        assert await bench.ask() == "new:hello"
        assert bench.loads() == [1, 1, 0]
        expected = {"old": 0, "new": 0} if room is BOTH_FIT else {"new": 0}
        assert bench.router.loaded() == expected

    run(scenario, **room)


def test_where_both_fit_requests_go_on_while_the_new_model_loads(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-slow")
        change = bench.change()
        await bench.until(lambda: bench.noted("new", "load"))
        while not bench.router.loaded().keys() & {"new"}:
            assert await bench.ask() == "old:hello"
            assert not bench.held
        await change
        assert await bench.ask() == "new:hello"

    run(scenario, **BOTH_FIT)


@one_fits
def test_where_one_fits_requests_are_held_and_old_answers_end(run, room):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        long = bench.begin("slow 20")
        await bench.until(lambda: bench.router.loaded() == {"old": 1})
        change = bench.change()
        await bench.until(lambda: bench.aliases._holds)
        later = [bench.begin("hello") for _ in range(5)]
        await bench.until(lambda: bench.held == 5)
        assert bench.meaning() == "old"
        assert (await long).endswith("19 ")
        await change
        assert await asyncio.gather(*later) == ["new:hello"] * 5
        assert bench.loads() == [1, 1, 0]

    run(scenario, **room)


@one_fits
def test_request_that_has_not_reached_its_engine_is_waited_for(run, room):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        async with bench.aliases.meaning("alias") as model:
            assert model == "old"
            change = bench.change()
            await bench.until(lambda: bench.aliases._holds)
            await asyncio.sleep(0.1)
            # Told the old meaning, it finds the old model, which has not been unloaded under it.
            async with bench.router.model(model):
                pass
        await change
        assert bench.loads() == [1, 1, 0]

    run(scenario, **room)


@every_room
@pytest.mark.parametrize(
    ("load", "code"), [("load-failure", "load_failed"), ("load-crash", "engine_died")]
)
def test_model_that_does_not_load_changes_nothing_and_fails_no_request(run, room, load, code):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", load)
        long = bench.begin("slow 10")
        await bench.until(lambda: bench.router.loaded() == {"old": 1})
        change = bench.change()
        asked = [bench.begin("hello") for _ in range(5)]
        with pytest.raises(ChildFailed) as caught:
            await change
        assert caught.value.code == code
        assert bench.meaning() == "old"
        assert await asyncio.gather(*asked) == ["old:hello"] * 5
        assert (await long).endswith("9 ")
        assert await bench.ask() == "old:hello"

    run(scenario, **room)


def test_nothing_is_unloaded_for_a_model_that_crashes_again_and_again(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        await bench.ask("other")
        bench.set_load("new", "load-crash")
        for _ in range(3):
            with pytest.raises(ChildFailed):
                await bench.aliases.put("alias", "new")
        assert bench.loads() == [1, 3, 1]
        assert bench.router.loaded() == {"old": 0, "other": 0}

    run(scenario, max_loaded=3, model_bytes=30)


def test_model_that_replaces_one_whose_engine_has_died_answers_first_too(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("old", "load-slow")
        bench.set_load("new", "load-failure")
        os.kill(int(bench.noted("old", "load")[0].split()[1]), signal.SIGKILL)
        await bench.until(lambda: len(bench.noted("old", "load")) == 2)
        with pytest.raises(ChildFailed):
            await bench.aliases.put("alias", "new")
        assert await bench.ask() == "old:hello"

    run(scenario)


def test_model_that_finds_no_memory_changes_nothing_and_unloads_nothing(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.model_bytes = 90
        with bench.ledger.grant("ftjob-1", "training", 20), pytest.raises(NoMemory):
            await bench.aliases.put("alias", "new")
        assert bench.meaning() == "old"
        assert await bench.ask() == "old:hello"
        assert bench.loads() == [1, 0, 0]

    run(scenario)


@pytest.mark.parametrize("room", [{"max_loaded": 2}, {"max_loaded": 9}], ids=["places", "memory"])
def test_another_that_nobody_uses_goes_rather_than_the_old_one(run, room):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        # Used later than the old one, which would have to go otherwise.
        await bench.ask("other")
        await bench.aliases.put("alias", "new")
        assert bench.router.loaded() == {"old": 0, "new": 0}
        assert bench.loads() == [1, 1, 1]

    run(scenario, **room)


def test_another_that_is_in_use_stays(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        busy = bench.begin("slow 60", "other")
        await bench.until(lambda: bench.router.loaded().get("other") == 1)
        await bench.aliases.put("alias", "new")
        assert bench.router.loaded() == {"other": 1, "new": 0}
        assert (await busy).endswith("59 ")

    run(scenario)


def test_another_name_of_the_same_file_needs_no_load(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        await bench.aliases.put("alias", "old@Q4_K_M")
        assert bench.meaning() == "old@Q4_K_M"
        assert len(bench.noted("old", "finish")) == 1
        assert await bench.ask() == "old:hello"
        assert bench.loads() == [1, 0, 0]

    run(scenario)


@pytest.mark.parametrize("model", ["none", "new@Q8_0", "new@"])
def test_model_or_quantization_that_is_not_there_changes_nothing(run, model):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        with pytest.raises(NotFound) as caught:
            await bench.aliases.put("alias", model)
        assert caught.value.param == "model"
        assert bench.meaning() == "old"
        assert bench.loads() == [1, 0, 0]

    run(scenario)


def test_changes_of_one_alias_come_one_after_the_other(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-slow")
        first = bench.change("new")
        await bench.until(lambda: bench.noted("new", "load"))
        second, third = bench.change("other"), bench.change("new")
        assert [each.model for each in (await first, await second, await third)] == [
            "new",
            "other",
            "new",
        ]
        assert bench.meaning() == "new"
        assert await bench.ask() == "new:hello"

    run(scenario)


def test_other_alias_changes_meanwhile(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-hang")
        change = bench.change()
        await bench.until(lambda: bench.noted("new", "load"))
        assert (await bench.aliases.put("second", "old")).model == "old"
        assert await bench.ask("second") == "old:hello"
        assert not change.done()

    run(scenario)


@every_room
def test_change_goes_on_when_who_asked_for_it_gives_up(run, room):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-slow")
        change = bench.change()
        await bench.until(lambda: bench.noted("new", "load"))
        change.cancel()
        await asyncio.wait({change})
        assert change.cancelled()
        await bench.until(lambda: bench.meaning() == "new")
        assert await bench.ask() == "new:hello"

    run(scenario, **room)


@every_room
def test_stop_ends_a_change_that_is_under_way(run, room):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-hang")
        change = bench.change()
        await bench.until(lambda: bench.noted("new", "load"))
        waiting = bench.change("other")
        await bench.until(lambda: len(bench.aliases._changes) == 2)
        await bench.aliases.stop()
        for each in (change, waiting):
            with pytest.raises(Busy) as caught:
                await each
            assert caught.value.code == "stopping"
        assert bench.meaning() == "old"
        await bench.aliases.stop()

    run(scenario, **room)


def test_held_requests_are_limited_and_one_that_gives_up_frees_its_place(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-slow")
        long = bench.begin("slow 20")
        await bench.until(lambda: bench.router.loaded() == {"old": 1})
        change = bench.change()
        await bench.until(lambda: bench.aliases._holds)
        asked = [bench.begin("hello") for _ in range(3)]
        await bench.until(lambda: bench.held == 3)
        with pytest.raises(Busy) as caught:
            await bench.ask()
        assert caught.value.code == "rate_limit_exceeded"
        asked.pop().cancel()
        await bench.until(lambda: bench.held == 2)
        asked.append(bench.begin("hello"))
        await change
        assert await asyncio.gather(*asked) == ["new:hello"] * 3
        await long

    run(scenario, max_loaded=1, max_waiting=3)


def test_deletion_waits_for_a_change(run):
    async def scenario(bench: Bench) -> None:
        await bench.ask()
        bench.set_load("new", "load-slow")
        change = bench.change()
        await bench.until(lambda: bench.noted("new", "load"))
        await bench.aliases.delete("alias")
        assert change.done()
        with pytest.raises(NotFound):
            await bench.ask()
        with pytest.raises(NotFound):
            await bench.aliases.delete("alias")
        assert await bench.ask("new") == "new:hello"

    run(scenario)


def test_nothing_is_kept_of_names_that_were_asked_for(run):
    async def scenario(bench: Bench) -> None:
        for name in ("alias", "none", "alias@Q8_0"):
            with contextlib.suppress(NotFound):
                await bench.ask(name)
        await bench.aliases.put("alias", "new")
        assert not bench.aliases._under_way
        assert not bench.aliases._locks
        assert not bench.aliases._holds

    run(scenario)
