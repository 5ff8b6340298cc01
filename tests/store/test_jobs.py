"""A job moves along the table and no other way, and its events are told once."""

from __future__ import annotations

import threading

import pytest

from appliance.child_records import Progress
from appliance.errors import NotFound, WrongState
from appliance.records import JobError, JobStatus, Release
from appliance.store.jobs import MOVES, UNFINISHED
from tests.store.conftest import make_job

S = JobStatus
ALLOWED = [
    (S.VALIDATING_FILES, S.QUEUED),
    (S.VALIDATING_FILES, S.FAILED),
    (S.VALIDATING_FILES, S.CANCELLED),
    (S.QUEUED, S.RUNNING),
    (S.QUEUED, S.FAILED),
    (S.QUEUED, S.CANCELLED),
    (S.RUNNING, S.QUEUED),
    (S.RUNNING, S.SUCCEEDED),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.CANCELLED),
]
FORBIDDEN = [(a, b) for a in S for b in S if (a, b) not in ALLOWED]


def add(store, status=S.VALIDATING_FILES):
    job = make_job(status)
    store.jobs.add(job, "created")
    return job


def messages(store, job):
    return [event.message for event in store.jobs.events(job.id, after=None, limit=100)[0]][::-1]


def test_every_pair_of_statuses_is_judged():
    assert (len(ALLOWED), len(FORBIDDEN)) == (10, 26)
    assert set(MOVES) == set(S)


@pytest.mark.parametrize(("start", "end"), ALLOWED)
def test_allowed_move_is_made_and_told(store, start, end):
    job = add(store, start)
    moved = store.jobs.move(job.id, end, "moved")
    assert moved == store.jobs.get(job.id)
    assert moved.status is end
    assert (moved.finished_at is not None) == (end not in UNFINISHED)
    assert messages(store, job) == ["created", "moved"]


@pytest.mark.parametrize(("start", "end"), FORBIDDEN)
def test_forbidden_move_is_refused_and_changes_nothing(store, start, end):
    job = add(store, start)
    with pytest.raises(WrongState) as caught:
        store.jobs.move(job.id, end, "moved", error=JobError(code="c", message="m"))
    assert start.value in caught.value.message
    assert store.jobs.get(job.id) == job
    assert messages(store, job) == ["created"]


def test_job_comes_back_as_it_was_stored(store):
    job = add(store)
    assert store.jobs.get(job.id) == job


def test_success_brings_the_model_in_the_same_moment(store):
    job = add(store, S.RUNNING)
    release = Release(
        name="ft:x", created_at=1, job_id=job.id, base_model="b", adapter_directory="a", files=()
    )
    done = store.jobs.move(job.id, S.SUCCEEDED, "done", trained_tokens=1 << 40, release=release)
    assert (done.fine_tuned_model, done.trained_tokens) == ("ft:x", 1 << 40)
    assert store.catalog.get("ft:x") == release


def test_refused_success_brings_no_model(store):
    job = add(store, S.CANCELLED)
    release = Release(
        name="ft:x", created_at=1, job_id=job.id, base_model="b", adapter_directory="a", files=()
    )
    with pytest.raises(WrongState):
        store.jobs.move(job.id, S.SUCCEEDED, "done", release=release)
    assert store.catalog.find_release("ft:x") is None


def test_two_ends_at_once_leave_one(store):
    job = add(store, S.RUNNING)
    outcomes = []

    def end(status: JobStatus) -> None:
        try:
            store.jobs.move(job.id, status, status.value)
            outcomes.append(status)
        except WrongState:
            pass

    threads = [threading.Thread(target=end, args=(s,)) for s in (S.FAILED, S.CANCELLED) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert store.jobs.get(job.id).status is outcomes[0]


def test_progress_reported_again_is_told_once(store):
    job = add(store, S.RUNNING)
    lines = [Progress(key=f"step:{n}", message=f"step {n}", data={"n": n}) for n in range(3)]
    store.jobs.report(job.id, "training", lines[:2])
    first, _ = store.jobs.events(job.id, after=None, limit=100)
    store.jobs.report(job.id, "training", lines)
    assert store.jobs.events(job.id, after=None, limit=100)[0][1:] == first
    assert messages(store, job) == ["created", "step 0", "step 1", "step 2"]


def test_same_key_of_another_stage_is_another_event(store):
    job = add(store, S.RUNNING)
    for stage in ("training", "release"):
        store.jobs.report(job.id, stage, [Progress(key="done", message=stage)])
    assert messages(store, job) == ["created", "training", "release"]


@pytest.mark.parametrize("eta", [0.0, 1e9, 1e18, 1e300])
def test_estimate_of_any_size_is_stored(store, eta):
    job = add(store, S.RUNNING)
    store.jobs.report(job.id, "training", [Progress(key="k", message="m", eta_seconds=eta)])
    assert store.jobs.get(job.id).estimated_finish is not None
    assert store.jobs.move(job.id, S.QUEUED, "again").estimated_finish is None


def test_job_queued_twice_tells_it_twice(store):
    job = add(store, S.QUEUED)
    for _ in range(2):
        store.jobs.move(job.id, S.RUNNING, "started")
        store.jobs.move(job.id, S.QUEUED, "restarted")
    assert messages(store, job) == ["created", *(["started", "restarted"] * 2)]


def test_unfinished_jobs_are_found_oldest_first(store):
    jobs = [add(store, status) for status in S]
    expected = [job.id for job in jobs if job.status in UNFINISHED]
    assert [job.id for job in store.jobs.unfinished()] == expected
    assert len(expected) == 3
    assert store.jobs.count_by_status() == {status.value: 1 for status in S}


def test_pages_of_jobs_and_of_events(store):
    ids = [add(store).id for _ in range(5)]
    first, more = store.jobs.page(after=None, limit=2)
    second, _ = store.jobs.page(after=first[-1].id, limit=3)
    assert more
    assert [job.id for job in [*first, *second]] == ids[::-1]
    store.jobs.report(ids[0], "t", [Progress(key=str(n), message=str(n)) for n in range(5)])
    page, more = store.jobs.events(ids[0], after=None, limit=4)
    rest, none = store.jobs.events(ids[0], after=page[-1].id, limit=4)
    assert [e.message for e in [*page, *rest]] == ["4", "3", "2", "1", "0", "created"]
    assert (more, none) == (True, False)


@pytest.mark.parametrize("job_id", ["", "ftjob-none", "'; DROP TABLE jobs; --", "\x00"])
def test_unknown_job_is_not_found(store, job_id):
    for call in (
        lambda: store.jobs.get(job_id),
        lambda: store.jobs.move(job_id, S.QUEUED, "m"),
        lambda: store.jobs.events(job_id, after=None, limit=1),
    ):
        with pytest.raises(NotFound):
            call()


def test_report_that_comes_after_the_end_changes_nothing(store):
    job = add(store, S.RUNNING)
    ended = store.jobs.move(job.id, S.CANCELLED, "cancelled")
    store.jobs.report(job.id, "training", [Progress(key="late", message="late", eta_seconds=9.0)])
    assert store.jobs.get(job.id) == ended
    assert messages(store, job) == ["created", "cancelled"]
