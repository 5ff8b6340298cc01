"""Fine-tuning jobs and their events.

A job's status moves only along the table of allowed moves; a finished job never changes again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.dialects.sqlite import insert

from appliance.child_records import Progress
from appliance.errors import NotFound, WrongState
from appliance.records import Job, JobError, JobEvent, JobStatus, Release
from appliance.store import rows
from appliance.store.database import Database
from appliance.store.tables import job_events, jobs, releases

S = JobStatus
MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    S.VALIDATING_FILES: frozenset({S.QUEUED, S.FAILED, S.CANCELLED}),
    S.QUEUED: frozenset({S.RUNNING, S.FAILED, S.CANCELLED}),
    # A job that was running when the daemon died waits its turn again.
    S.RUNNING: frozenset({S.QUEUED, S.SUCCEEDED, S.FAILED, S.CANCELLED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}
# A child that divides by a small number may say anything; SQLite's integers end somewhere.
LONGEST_ESTIMATE_SECONDS = 100 * 365 * 86400
UNFINISHED = frozenset(status for status, moves in MOVES.items() if moves)


class JobStore:
    """Jobs, their events, and the releases they end in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: Job, *messages: str) -> None:
        """Store a new job together with its first events."""
        with self._database.transaction() as connection:
            rows.add(connection, jobs, job)
            for number, message in enumerate(messages):
                _add_event(connection, job.id, Progress(key=f"created:{number}", message=message))

    def get(self, job_id: str) -> Job:
        """The job, or NotFound."""
        with self._database.reading() as connection:
            return _get(connection, job_id)

    def page(self, *, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """One page of jobs, newest first, and whether more follow."""
        with self._database.reading() as connection:
            return rows.page(
                connection, select(jobs), jobs, Job, after=after, limit=limit, order="desc"
            )

    def unfinished(self) -> list[Job]:
        """Every job that has not ended, oldest first."""
        query = select(jobs).where(jobs.c.status.in_(sorted(UNFINISHED)))
        with self._database.reading() as connection:
            found = connection.execute(query.order_by(jobs.c.position)).all()
        return [rows.to_record(row, Job) for row in found]

    def move(
        self,
        job_id: str,
        status: JobStatus,
        message: str,
        *,
        error: JobError | None = None,
        trained_tokens: int | None = None,
        release: Release | None = None,
    ) -> Job:
        """Change the status and say so in an event, in one transaction; returns the job as it is now.

        With `release` the fine-tuned model appears in that same transaction.
        Raises WrongState for a move that is not allowed.
        """
        with self._database.transaction() as connection:
            job = _get(connection, job_id)
            if status not in MOVES[job.status]:
                raise WrongState(
                    "invalid_job_status",
                    f"job {job_id} should be {_sources(status)} to become {status.value}; "
                    f"it is {job.status.value}",
                    param="fine_tuning_job_id",
                )
            changes: dict[str, Any] = {"status": status.value, "estimated_finish": None}
            if not MOVES[status]:
                changes["finished_at"] = int(time.time())
            if error is not None:
                changes["error"] = rows.columns(error)
            if trained_tokens is not None:
                changes["trained_tokens"] = trained_tokens
            if release is not None:
                rows.add(connection, releases, release)
                changes["fine_tuned_model"] = release.name
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**changes))
            level: Literal["info", "error"] = "error" if status is S.FAILED else "info"
            key = status.value if not MOVES[status] else rows.new_id(f"{status.value}:", 8)
            _add_event(connection, job_id, Progress(key=key, message=message, level=level))
            return _get(connection, job_id)

    def report(self, job_id: str, prefix: str, lines: Iterable[Progress]) -> None:
        """Turn a child's progress into events; what was reported before is not repeated.

        What comes late, of a job that has ended meanwhile, changes nothing.
        """
        with self._database.transaction() as connection:
            if not MOVES[_get(connection, job_id).status]:
                return
            eta_seconds = None
            for line in lines:
                _add_event(connection, job_id, line, prefix)
                eta_seconds = line.eta_seconds if line.eta_seconds is not None else eta_seconds
            if eta_seconds is not None:
                finish = int(time.time() + min(eta_seconds, LONGEST_ESTIMATE_SECONDS))
                connection.execute(
                    update(jobs).where(jobs.c.id == job_id).values(estimated_finish=finish)
                )

    def events(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[JobEvent], bool]:
        """One page of a job's events, newest first, and whether more follow."""
        query = select(job_events).where(job_events.c.job_id == job_id)
        with self._database.reading() as connection:
            _get(connection, job_id)
            return rows.page(
                connection, query, job_events, JobEvent, after=after, limit=limit, order="desc"
            )

    def count_by_status(self) -> dict[str, int]:
        """How many jobs have each status."""
        with self._database.reading() as connection:
            return rows.count_by(connection, jobs, "status")


def _sources(target: JobStatus) -> str:
    return " or ".join(status.value for status, moves in MOVES.items() if target in moves)


def _get(connection: Any, job_id: str) -> Job:
    job = rows.find(connection, jobs, Job, id=job_id)
    if job is None:
        raise NotFound(
            "fine_tuning_job_not_found",
            f"Could not find fine tune: {job_id!r}",
            param="fine_tuning_job_id",
        )
    return job


def _add_event(connection: Any, job_id: str, line: Progress, prefix: str = "job") -> None:
    event = JobEvent(
        id=rows.new_id("ftevent-"),
        job_id=job_id,
        created_at=int(time.time()),
        key=f"{prefix}:{line.key}",
        level=line.level,
        message=line.message,
        data=line.data,
    )
    statement = insert(job_events).values(**rows.columns(event))
    connection.execute(statement.on_conflict_do_nothing(index_elements=["job_id", "key"]))
