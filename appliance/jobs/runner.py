"""The queue: takes jobs in the order they came, one training at a time, through all their stages.

The queue is the database itself and all progress is on disk: nothing that a kill could take is in memory.
Stopping the daemon stops the children and leaves the jobs where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from appliance import durable
from appliance.errors import ApplianceError, Busy, NotFound, WrongState
from appliance.jobs import specs, watch
from appliance.records import Job, JobError, JobStatus
from appliance.store.rows import new_id
from appliance.store.store import Store

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


class JobRunner:
    """Owns the queue; every method belongs to the daemon's event loop.

    `run` takes one running job to its end.
    """

    def __init__(self, store: Store, run: Callable[[Job], Awaitable[None]]) -> None:
        self._store = store
        self._run_to_its_end = run
        self._woken = asyncio.Event()
        self._current: tuple[str, asyncio.Task[None]] | None = None
        self._queue: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to work through the queue, unless told to stop already."""
        if self._stopped:
            return
        self._queue = asyncio.create_task(self._run(), name="job queue")

    async def stop(self) -> None:
        """Stop; the children are gone when this returns, and the jobs wait for the next start."""
        self._stopped = True
        if self._queue is not None:
            self._queue.cancel()
            await asyncio.wait({self._queue})

    async def _run(self) -> None:
        """The oldest job that has not ended, then the next.

        Where even a failure cannot be stored (a full disk), the queue waits and takes the job up again.
        """
        reason = "The appliance was restarted"
        while True:
            try:
                await self._take_up_interrupted(reason)
                while True:
                    await self._run_next()
            except Exception:
                logger.exception("the queue cannot go on; it tries again")
                reason = "The queue could not go on and takes the job up again"
                await asyncio.sleep(RETRY_SECONDS)

    def wake(self) -> None:
        """Say that there may be a new job."""
        self._woken.set()

    async def _take_up_interrupted(self, reason: str) -> None:
        unfinished = await asyncio.to_thread(self._store.jobs.unfinished)
        for job in unfinished:
            if job.status is JobStatus.RUNNING:
                await self._move(job.id, JobStatus.QUEUED, reason)
        await asyncio.to_thread(self._discard_all_scratch, {job.id for job in unfinished})

    def _discard_all_scratch(self, unfinished: set[str]) -> None:
        """Of jobs that ended just before the daemon did."""
        for directory in self._store.jobs_directory.iterdir():
            if directory.name not in unfinished:
                specs.discard_scratch(self._store, directory.name)

    async def _run_next(self) -> None:
        self._woken.clear()
        waiting = await asyncio.to_thread(self._store.jobs.unfinished)
        if not waiting:
            await self._woken.wait()
            return
        job_id = waiting[0].id
        task = asyncio.create_task(self._run_job(job_id), name=f"job {job_id}")
        self._current = (job_id, task)
        try:
            await self._attend(job_id, task)
        finally:
            # Cancelled itself: the daemon stops, and the job's children with it.
            self._current = None
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        # The daemon has not been stopped and the task is over, so the job has ended.
        await asyncio.to_thread(specs.discard_scratch, self._store, job_id)

    async def _attend(self, job_id: str, task: asyncio.Task[None]) -> None:
        """Wait for the end of a job; those that come meanwhile are told that they are queued."""
        while not task.done():
            self._woken.clear()
            await self._queue_arrivals(job_id)
            woken = asyncio.create_task(self._woken.wait())
            try:
                await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()

    async def _queue_arrivals(self, running_id: str) -> None:
        try:
            unfinished = await asyncio.to_thread(self._store.jobs.unfinished)
            for ahead, job in enumerate(unfinished):
                if job.status is JobStatus.VALIDATING_FILES and job.id != running_id:
                    # Cancelled by now; or its data is gone, and it fails when its turn comes.
                    with contextlib.suppress(WrongState, NotFound):
                        await self._queue_behind(job, ahead)
        except (ApplianceError, OSError) as exc:
            # The running job is not to suffer; the others are queued when their turn comes.
            logger.warning("waiting jobs cannot be queued now", extra={"reason": str(exc)})

    async def _queue_behind(self, job: Job, ahead: int) -> None:
        await asyncio.to_thread(specs.check_data, self._store, job)
        others = f"{ahead} other{'s' * (ahead > 1)}"
        await self._move(job.id, JobStatus.QUEUED, f"Files validated, job queued behind {others}")

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended; its processes are gone when this returns."""
        job = await self._move(job_id, JobStatus.CANCELLED, "The job was cancelled")
        if self._current is not None and self._current[0] == job_id:
            task = self._current[1]
            task.cancel()
            await asyncio.wait({task})
        return job

    async def _run_job(self, job_id: str) -> None:
        try:
            with durable.full_disk_as_error():
                await self._run_course(job_id)
        except Busy:
            # Not the job's fault: the queue takes it up again.
            raise
        except ApplianceError as exc:
            await self._fail(job_id, JobError(code=exc.code, message=str(exc), param=exc.param))
        except Exception:
            logger.exception("job failed unexpectedly", extra={"job": job_id})
            message = "an internal error; see the daemon's log"
            await self._fail(job_id, JobError(code="internal_error", message=message))

    async def _run_course(self, job_id: str) -> None:
        job = await asyncio.to_thread(self._store.jobs.get, job_id)
        # It may have waited for hours since they were looked at.
        await asyncio.to_thread(specs.check_data, self._store, job)
        if job.status is JobStatus.VALIDATING_FILES:
            job = await self._move(job_id, JobStatus.QUEUED, "Files validated, job queued")
        job = await self._move(job_id, JobStatus.RUNNING, "Fine-tuning job started")
        await self._run_to_its_end(job)
        logger.info("job succeeded", extra={"job": job_id})

    async def _fail(self, job_id: str, error: JobError) -> None:
        logger.error("job failed", extra={"job": job_id, "code": error.code})
        await asyncio.to_thread(watch.tell_energy, self._store, job_id)
        with contextlib.suppress(WrongState):
            await self._move(
                job_id, JobStatus.FAILED, f"The job failed: {error.message}", error=error
            )

    async def _move(
        self, job_id: str, status: JobStatus, message: str, *, error: JobError | None = None
    ) -> Job:
        job = await asyncio.to_thread(self._store.jobs.move, job_id, status, message, error=error)
        logger.info("job moved", extra={"job": job_id, "status": status.value})
        return job


def new_job_id() -> str:
    """A fresh job id in OpenAI's style."""
    return new_id("ftjob-")
