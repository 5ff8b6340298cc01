"""One job from its data to a model that answers: training, release, first answer.

Each stage has its share of the device's memory and is watched for heat. Knows nothing of the queue. A stage
whose result exists is not run again, so a course may be run again after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance import batch
from appliance.child_records import Programs, ReleaseResult, TrainingResult
from appliance.hardware.lease import Ledger, Purpose
from appliance.hardware.sensors import Sensors
from appliance.jobs import specs, stages, watch
from appliance.jobs.memory import JobMemory, Serving
from appliance.records import Job, JobStatus, Release
from appliance.settings import Settings
from appliance.store.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What the stages of any job run with. At `thermal_limit_celsius` a job's children pause."""

    store: Store
    settings: Settings
    programs: Programs
    ledger: Ledger
    serving: Serving
    sensors: Sensors
    thermal_limit_celsius: int | None

    async def run(self, job: Job) -> None:
        """Take a running job to its success; raises ApplianceError where that cannot be."""
        memory = JobMemory(
            job,
            self.ledger,
            self.serving,
            lambda line: self.store.jobs.report(job.id, "memory", [line]),
        )
        try:
            trained, released = await self._train_and_release(job, memory)
            await asyncio.to_thread(watch.tell_energy, self.store, job.id)
            await self._publish(job, memory, trained, released)
        finally:
            self.serving.restore()

    async def _train_and_release(
        self, job: Job, memory: JobMemory
    ) -> tuple[TrainingResult, ReleaseResult]:
        plan, programs = job.plan, self.programs
        spec: msgspec.Struct = await asyncio.to_thread(
            specs.training, self.store, self.settings, job
        )
        trained = await self._stage(
            job, memory, "training", programs.training, plan.training_bytes, spec, TrainingResult
        )
        spec = await asyncio.to_thread(specs.release, self.store, self.settings, job, trained)

        async def release() -> ReleaseResult:
            return await self._stage(
                job, memory, "release", programs.release, plan.release_bytes, spec, ReleaseResult
            )

        # What has been trained is not given up for want of room to begin.
        return trained, await memory.waited_for("release", release)

    async def _stage(
        self,
        job: Job,
        memory: JobMemory,
        stage: Purpose,
        program: Sequence[str],
        size_bytes: int | None,
        spec: msgspec.Struct,
        result: type[stages.Result],
    ) -> stages.Result:
        directory = self.store.jobs_directory / job.id / stage
        async with contextlib.AsyncExitStack() as stack:
            descriptors: tuple[int, ...] = ()
            on_poll = None
            # Nothing is run, and nothing is needed, where the result is there from an earlier time.
            if not (directory / batch.RESULT).exists():
                lease = await stack.enter_async_context(memory.held(stage, size_bytes))
                descriptors = (lease.descriptor,)
                watching = watch.watching(
                    self.store, job.id, directory, self.sensors, self.thermal_limit_celsius
                )
                on_poll = await stack.enter_async_context(watching)
            return await stages.run(
                f"{stage} of {job.id}",
                program,
                directory,
                spec,
                result,
                on_progress=lambda lines: self.store.jobs.report(job.id, stage, lines),
                stall_timeout_seconds=self.settings.stall_timeout_seconds,
                pass_fds=descriptors,
                on_poll=on_poll,
            )

    async def _publish(
        self, job: Job, memory: JobMemory, trained: TrainingResult, released: ReleaseResult
    ) -> None:
        name = specs.release_name(job)
        alone = released.adapter_file
        release = Release(
            name=name,
            created_at=int(time.time()),
            job_id=job.id,
            base_model=job.plan.base_model,
            adapter_directory=specs.adapter_directory(job),
            files=tuple(specs.relative(self.store, file) for file in released.files),
            adapter_file=None if alone is None else specs.relative(self.store, alone),
        )
        path = Path(released.files[0].path)
        try:
            await memory.waited_for("serving", lambda: self.serving.serve(name, path))
            await asyncio.to_thread(
                self.store.jobs.move,
                job.id,
                JobStatus.SUCCEEDED,
                f"The job has completed: {name} answers",
                trained_tokens=trained.trained_tokens,
                release=release,
            )
        except BaseException:
            # Loaded or not: what is not in the catalogue takes no memory.
            await self.serving.withdraw(path)
            raise
