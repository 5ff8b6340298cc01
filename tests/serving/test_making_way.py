"""Models go when a job needs their memory, no more of them than must, and all of them come back."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from appliance.engine import client
from appliance.errors import Busy, ChildFailed, NoMemory, OutOfDisk
from appliance.hardware import lease
from appliance.hardware.lease import Ledger
from appliance.serving import restoring
from tests.fakes import PROGRAMS
from tests.serving.test_router import Bench, run

__all__ = ["run"]

CAPACITY, MODEL = 100, 30


@pytest.fixture(autouse=True)
def _restores_at_once(monkeypatch):
    monkeypatch.setattr(restoring, "RETRY_SECONDS", 0.05)


class LeasingBench:
    """A bench whose engines take a lease of MODEL each, of CAPACITY together."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.router = bench.router
        self.ledger = Ledger(bench.directory / "leases", CAPACITY)
        bench.router._launch = self.launch

    async def launch(self, name: str, path: Path) -> client.Engine:
        with await lease.grant(self.ledger, name, "serving", MODEL) as held:
            return await client.start(
                name,
                path,
                n_ctx=128,
                threads=1,
                slots=4,
                program=PROGRAMS.engine,
                pass_fds=(held.descriptor,),
            )

    async def load(self, names: str) -> None:
        for name in names:
            await self.bench.ask(name)

    async def make_way(self, size_bytes: int) -> tuple[lease.Lease, list[str]]:
        async def take() -> lease.Lease:
            return await lease.grant(self.ledger, "job", "training", size_bytes)

        return await self.router.make_way(take)

    async def unload_for_a_job(self) -> None:
        held, _ = await self.make_way(CAPACITY)
        with held:
            pass

    async def restored(self) -> None:
        assert self.router._restoring._task is not None
        await self.router._restoring._task

    def holders(self) -> set[str]:
        return {each.holder for each in self.ledger.holdings()}

    async def wait_for_holders(self, *names: str) -> None:
        while self.holders() != set(names):
            await asyncio.sleep(0.02)


def test_no_more_models_go_than_must(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("abc")
        held, gone = await leasing.make_way(60)
        with held:
            assert gone == ["a", "b"]
            assert leasing.holders() == {"job", "c"}
        leasing.router.restore()
        await leasing.wait_for_holders("a", "b", "c")

    run(scenario, max_loaded=3)


def test_nothing_goes_where_there_is_room(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        held, gone = await leasing.make_way(70)
        with held:
            assert gone == []
        assert leasing.holders() == {"a"}

    run(scenario, max_loaded=3)


def test_nothing_goes_where_it_would_not_be_enough(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        with leasing.ledger.grant("other", "training", 60):
            with pytest.raises(NoMemory):
                await leasing.make_way(80)
            assert leasing.holders() == {"a", "other"}

    run(scenario, max_loaded=3)


def test_all_come_back_after_jobs_that_follow_each_other(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("abc")
        for job_seconds in (0.05, 0.0, 0.05, 0.0, 0.0):
            held, _ = await leasing.make_way(100)
            with held:
                assert leasing.holders() == {"job"}
                # What the job before had loaded again is still to come, and finds no room.
                await asyncio.sleep(job_seconds)
            leasing.router.restore()
            while leasing.holders() == set():
                await asyncio.sleep(0.005)
        await leasing.wait_for_holders("a", "b", "c")

    run(scenario, max_loaded=3)


@pytest.mark.parametrize(("limit", "other_bytes"), [(2, 0), (3, 11)])
def test_no_model_goes_for_one_that_comes_back(run, limit, other_bytes):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        await leasing.unload_for_a_job()
        await leasing.load("bc")
        with leasing.ledger.grant("job", "training", other_bytes):
            async with leasing.router.model("b"):
                leasing.router.restore()
                await asyncio.sleep(0.5)
                assert leasing.router.loaded() == {"b": 1, "c": 0}
        # It has not been forgotten, and comes by itself.
        await leasing.router.unload(bench.path("c"))
        await leasing.wait_for_holders("a", "b")

    run(scenario, max_loaded=limit)


def test_model_that_would_be_idle_by_now_does_not_come_back(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        held, _ = await leasing.make_way(100)
        with held:
            leasing.router.restore()
            await asyncio.sleep(0.5)
        await leasing.restored()
        assert leasing.holders() == set()
        assert len(bench.noted("a", "load")) == 1

    run(scenario, max_loaded=3, idle_seconds=0.4)


def test_no_model_comes_back_between_two_stages_of_a_job(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("ab")
        held, _ = await leasing.make_way(100)
        with held:
            # Of an earlier job, and without success so far.
            leasing.router.restore()
            await asyncio.sleep(0.2)
        for _ in range(2):
            await leasing.unload_for_a_job()
            await asyncio.sleep(0.3)
            assert leasing.holders() == set()
        leasing.router.restore()
        await leasing.wait_for_holders("a", "b")

    run(scenario, max_loaded=3)


def test_engine_that_died_is_no_model_that_came_back(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        await leasing.unload_for_a_job()
        await leasing.load("a")
        os.kill(bench.pid("a"), signal.SIGKILL)
        while leasing.router.loaded():
            await asyncio.sleep(0.02)
        leasing.router.restore()
        while leasing.router.loaded() != {"a": 0}:
            await asyncio.sleep(0.02)

    run(scenario, max_loaded=1)


@pytest.mark.parametrize(
    ("failure", "loads"),
    [
        (Busy("busy", "not now"), True),
        (OutOfDisk("out_of_disk", "full"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (ChildFailed("load_failed", "broken"), False),
    ],
)
def test_fault_that_passes_is_tried_again(run, failure, loads):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        await leasing.unload_for_a_job()
        failures = [failure] * 3

        async def launch(name: str, path: Path) -> client.Engine:
            if failures:
                raise failures.pop()
            return await leasing.launch(name, path)

        bench.router._launch = launch
        leasing.router.restore()
        await leasing.restored()
        assert leasing.holders() == ({"a"} if loads else set())

    run(scenario, max_loaded=3)


def test_file_that_is_unloaded_for_good_does_not_come_back(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("ab")
        held, _ = await leasing.make_way(100)
        with held:
            await leasing.router.unload(bench.path("a"))
        leasing.router.restore()
        await leasing.restored()
        assert leasing.holders() == {"b"}

    run(scenario, max_loaded=3)


def test_router_that_is_closed_while_a_model_comes_back_leaves_no_engine(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("a")
        await leasing.unload_for_a_job()
        bench.add("a", load="load-hang")
        leasing.router.restore()
        while len(bench.noted("a", "load")) < 2:
            await asyncio.sleep(0.02)
        await leasing.router.close()
        assert leasing.holders() == set()

    run(scenario, max_loaded=3)


def test_model_that_finds_no_room_makes_an_idle_one_go(run):
    async def scenario(bench: Bench) -> None:
        leasing = LeasingBench(bench)
        await leasing.load("ab")
        with leasing.ledger.grant("job", "training", 40):
            await leasing.load("c")
            assert leasing.holders() == {"b", "c", "job"}

    run(scenario, max_loaded=3)
