"""What the queue does when its daemon starts and stops at odd moments."""

from __future__ import annotations

import asyncio

from appliance.jobs.runner import JobRunner
from appliance.store.store import Store


async def never(*_: object) -> None:
    raise AssertionError("nothing is to be run")


def test_queue_that_was_stopped_before_its_start_does_not_start(settings):
    store = Store(settings.state_dir)

    async def stop_then_start() -> set[str]:
        runner = JobRunner(store, never)
        await runner.stop()
        runner.start()
        return {task.get_name() for task in asyncio.all_tasks()}

    try:
        assert "job queue" not in asyncio.run(stop_then_start())
    finally:
        store.close()
