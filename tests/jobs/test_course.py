"""A job's course through the daemon, with fake children: success and every kind of failure."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from appliance import durable
from appliance.child_records import ReleaseSpec, TrainingSpec
from appliance.hardware import profiles
from appliance.hardware.fit.machine import machine_of
from appliance.hardware.lease import Ledger
from appliance.hardware.probe import probe
from appliance.jobs.create import create
from appliance.jobs.request import FineTuningRequest
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests.daemon_process import BASE, error_of, group_members, ok, rows, wait_for
from tests.hardware.test_telemetry import GPU


def messages(daemon, job):
    return [event["message"] for event in daemon.events(job["id"])]


def children_of(daemon, job) -> list[int]:
    """Processes that work in the job's directory."""
    directory = str(daemon.state_dir / "jobs" / job["id"]).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if directory in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def hung_group(daemon, job, stage) -> int:
    """The process group of a child that hangs, once its grandchild is up, too."""
    daemon.wait_for_event(job["id"], "hanging as")
    group = int((daemon.state_dir / "jobs" / job["id"] / stage / "hung.pid").read_text())
    assert len(group_members(group)) == 2
    return group


@pytest.mark.parametrize(
    ("asked", "quantizations", "noted"),
    [
        ({}, ["Q4_K_M"], False),
        ({"importance_matrix": "off"}, ["Q4_K_M"], False),
        ({"importance_matrix": "auto"}, ["Q8_0", "Q4_K_M"], True),
        ({"importance_matrix": "on"}, ["Q2_K"], True),
        # No type gains from one.
        ({"importance_matrix": "on"}, ["Q8_0", "F16"], False),
    ],
)
def test_children_are_told_of_an_importance_matrix(shared_daemon, asked, quantizations, noted):
    job = shared_daemon.create_job(appliance={"quantizations": quantizations, **asked})
    done = shared_daemon.wait_for_job(job["id"], "succeeded", "failed")
    assert done["status"] == "succeeded"
    directory = shared_daemon.state_dir / "jobs" / job["id"]
    training = durable.read_json(directory / "training" / "spec.json", TrainingSpec)
    release = durable.read_json(directory / "release" / "spec.json", ReleaseSpec)
    assert training.importance_matrix == noted
    file = str(directory / "training" / "importance.safetensors")
    assert release.trained.importance_file == (file if noted else None)
    assert release.trained.importance_matrix == asked.get("importance_matrix", "off")


def test_job_ends_in_a_model_that_answers(shared_daemon):
    job = shared_daemon.create_job(suffix="line-3", metadata={"k": "v"}, seed=7)
    assert job["status"] == "validating_files"
    done = shared_daemon.wait_for_job(job["id"], "succeeded", "failed")
    name = f"ft:{BASE}:local:line-3:{job['id'][-8:]}"
    assert (done["status"], done["fine_tuned_model"]) == ("succeeded", name)
    assert done["trained_tokens"] > 0
    assert done["finished_at"] >= done["created_at"]
    assert done["estimated_finish"] is None
    assert done["error"] == {"code": None, "message": None, "param": None}
    # This device does not tell its power.
    assert done["appliance"]["energy"] is None
    assert (done["seed"], done["metadata"]) == (7, {"k": "v"})
    answer = ok(shared_daemon.chat("hello", model=name))
    assert answer["choices"][0]["message"]["content"] == f"{name}:hello"
    assert name in [model["id"] for model in ok(shared_daemon.http.get("/v1/models"))["data"]]


def test_adapter_of_a_job_can_be_asked_on_its_base(shared_daemon):
    done = shared_daemon.wait_for_job(shared_daemon.create_job()["id"], "succeeded")
    name = f"{done['fine_tuned_model']}@adapter"
    answer = ok(shared_daemon.chat("hello", model=name))
    assert answer["choices"][0]["message"]["content"] == f"{BASE}+adapter:hello"
    (release,) = [
        each
        for each in ok(shared_daemon.http.get("/api/v1/models"))["releases"]
        if each["name"] == done["fine_tuned_model"]
    ]
    path = f"jobs/{done['id']}/release/adapter.gguf"
    assert release["adapter_file"] == {
        "path": path,
        "bytes": 5,
        "sha256": durable.sha256_of(shared_daemon.state_dir / path),
    }


def test_history_tells_each_step_once_and_in_order(shared_daemon):
    job = shared_daemon.create_job()
    shared_daemon.wait_for_job(job["id"], "succeeded")
    told = messages(shared_daemon, job)
    assert told.pop(1) == "Memory: what this model's family takes cannot be told beforehand"
    assert told[:3] == [
        f"Created fine-tuning job: {job['id']}",
        "Files validated, job queued",
        "Fine-tuning job started",
    ]
    assert told[3:8] == [f"Step {n}/5" for n in range(1, 6)]
    assert told[8:10] == ["wrote model-Q4_K_M.gguf", "wrote model-Q8_0.gguf"]
    assert told[10].startswith("The job has completed")
    assert len(told) == 11
    types = {event["type"] for event in shared_daemon.events(job["id"])[4:9]}
    assert types == {"metrics"}


FAILURES = [
    ("refuse", "fake_refusal", "expected better rows, found these"),
    ("crash", "child_died", "SIGSEGV"),
    ("exit", "child_died", "exit status 1; last line: the fake gives up"),
    ("release-refuse", "fake_refusal", "expected better rows"),
    ("release-crash", "child_died", "SIGSEGV"),
    ("load-failure", "load_failed", "it is a fake"),
    ("load-crash", "engine_died", "no memory for this fake"),
]


@pytest.mark.parametrize(("behaviour", "code", "words"), FAILURES)
def test_failure_is_told_with_its_reason_and_the_next_job_runs(
    shared_daemon, behaviour, code, words
):
    failing, next_one = shared_daemon.create_job(behaviour), shared_daemon.create_job()
    failed = shared_daemon.wait_for_job(failing["id"])
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == code
    assert words in failed["error"]["message"]
    assert failed["fine_tuned_model"] is None
    assert shared_daemon.events(failing["id"])[-1]["level"] == "error"
    assert shared_daemon.wait_for_job(next_one["id"])["status"] == "succeeded"


def test_waiting_jobs_are_queued_and_told_how_many_are_ahead(shared_daemon):
    running = shared_daemon.create_job("hang")
    shared_daemon.wait_for_event(running["id"], "hanging as")
    waiting = [shared_daemon.create_job() for _ in range(2)]
    for job, words in zip(waiting, ("behind 1 other", "behind 2 others"), strict=True):
        assert shared_daemon.wait_for_job(job["id"], "queued")["status"] == "queued"
        assert messages(shared_daemon, job)[-1] == f"Files validated, job queued {words}"
    ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{running['id']}/cancel"))
    for job in waiting:
        shared_daemon.wait_for_job(job["id"], "succeeded")
        told = messages(shared_daemon, job)
        assert sum(message.startswith("Files validated") for message in told) == 1


def test_waiting_job_whose_data_is_gone_fails_when_its_turn_comes(shared_daemon):
    running = shared_daemon.create_job("hang")
    shared_daemon.wait_for_event(running["id"], "hanging as")
    lost = shared_daemon.create_job()
    shared_daemon.wait_for_job(lost["id"], "queued")
    (shared_daemon.state_dir / "jobs" / lost["id"] / "data" / "train.jsonl").unlink()
    after = shared_daemon.create_job()
    shared_daemon.wait_for_job(after["id"], "queued")
    ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{running['id']}/cancel"))
    failed = shared_daemon.wait_for_job(lost["id"], "failed")
    assert failed["error"]["code"] == "file_not_found"
    assert failed["error"]["param"] == "training_file"
    shared_daemon.wait_for_job(after["id"], "succeeded")


def test_waiting_job_without_data_holds_up_neither_the_running_one_nor_those_behind(daemon):
    files = [daemon.upload(rows(behaviour)) for behaviour in ("hang", "", "")]
    daemon.stop()
    profile = profiles.load_all(CHECKOUT / "firmware_profiles")["cpu"]
    machine = machine_of(probe(daemon.state_dir), profile)
    ledger = Ledger(daemon.state_dir / "leases", machine.device_bytes)
    store = Store(daemon.state_dir)
    running, lost, behind = (
        create(
            store, profile, machine, ledger, FineTuningRequest(model=BASE, training_file=file["id"])
        ).id
        for file in files
    )
    store.close()
    (daemon.state_dir / "jobs" / lost / "data" / "train.jsonl").unlink()
    daemon.start()
    daemon.wait_for_event(running, "hanging as")
    daemon.wait_for_job(behind, "queued")
    assert daemon.events(behind)[-1]["message"] == "Files validated, job queued behind 2 others"
    assert daemon.job(lost)["status"] == "validating_files"
    ok(daemon.http.post(f"/v1/fine_tuning/jobs/{running}/cancel"))
    assert daemon.wait_for_job(lost, "failed")["error"]["code"] == "file_not_found"
    daemon.wait_for_job(behind, "succeeded")


def test_jobs_run_one_after_another_in_their_order(shared_daemon):
    jobs = [shared_daemon.create_job() for _ in range(3)]
    for job in jobs:
        shared_daemon.wait_for_job(job["id"], "succeeded")
    created = {}
    for number, job in enumerate(jobs):
        for event in shared_daemon.events(job["id"]):
            if event["message"] == "Fine-tuning job started":
                created[number, "start"] = event["created_at"]
            if event["message"].startswith("The job has completed"):
                created[number, "end"] = event["created_at"]
    assert created[0, "end"] <= created[1, "start"]
    assert created[1, "end"] <= created[2, "start"]


def test_training_goes_on_from_an_earlier_fine_tuned_model(shared_daemon):
    first = shared_daemon.wait_for_job(shared_daemon.create_job()["id"], "succeeded")
    second = shared_daemon.create_job(model=first["fine_tuned_model"])
    assert second["appliance"]["plan"]["base_model"] == BASE
    adapter = second["appliance"]["plan"]["initial_adapter"]
    assert adapter == f"jobs/{first['id']}/training/adapter"
    done = shared_daemon.wait_for_job(second["id"], "succeeded")
    assert done["fine_tuned_model"].startswith(f"ft:{BASE}:")
    spec = (shared_daemon.state_dir / "jobs" / second["id"] / "training" / "spec.json").read_text()
    assert str(shared_daemon.state_dir / adapter) in spec


def test_job_keeps_its_data_when_the_file_is_deleted(shared_daemon):
    ahead = shared_daemon.create_job("hang")
    job = shared_daemon.create_job()
    ok(shared_daemon.http.delete(f"/v1/files/{job['training_file']}"))
    ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{ahead['id']}/cancel"))
    assert shared_daemon.wait_for_job(job["id"])["status"] == "succeeded"


@pytest.mark.parametrize(
    ("behaviour", "stage"), [("hang", "training"), ("release-hang", "release")]
)
def test_cancelled_job_leaves_no_process(shared_daemon, behaviour, stage):
    job = shared_daemon.create_job(behaviour)
    group = hung_group(shared_daemon, job, stage)
    cancelled = ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    assert cancelled["status"] == "cancelled"
    # A process that has been killed may take a moment to vanish.
    wait_for(lambda: not group_members(group), "the group to be gone")
    assert children_of(shared_daemon, job) == []
    assert messages(shared_daemon, job)[-1] == "The job was cancelled"
    directory = shared_daemon.state_dir / "jobs" / job["id"]
    scratch = (directory / "release" / "intermediate", directory / "training" / "checkpoints")
    wait_for(lambda: not any(map(Path.exists, scratch)), "what was half made to be removed")


def test_waiting_job_is_cancelled_without_ever_starting(shared_daemon):
    running, waiting = shared_daemon.create_job("hang"), shared_daemon.create_job()
    hung_group(shared_daemon, running, "training")
    for job in (waiting, running):
        ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    last = shared_daemon.wait_for_job(shared_daemon.create_job()["id"])
    assert last["status"] == "succeeded"
    assert "Fine-tuning job started" not in messages(shared_daemon, waiting)
    assert shared_daemon.job(waiting["id"])["status"] == "cancelled"


def test_job_cancelled_while_its_model_loads_leaves_no_model(shared_daemon):
    job = shared_daemon.create_job("load-hang")
    gguf = shared_daemon.state_dir / "jobs" / job["id"] / "release" / "model-Q4_K_M.log"
    wait_for(gguf.exists, "the model to load", why=shared_daemon.log_tail)
    ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    name = f"ft:{BASE}:local::{job['id'][-8:]}"
    assert error_of(shared_daemon.chat("hi", model=name), 404)["code"] == "model_not_found"
    assert children_of(shared_daemon, job) == []


@pytest.mark.parametrize("behaviour", ["answer-hang", "answer-error"])
def test_model_that_does_not_answer_its_first_question_is_withdrawn(shared_daemon, behaviour):
    job = shared_daemon.create_job(behaviour)
    gguf = shared_daemon.state_dir / "jobs" / job["id"] / "release" / "model-Q4_K_M.log"
    wait_for(lambda: gguf.exists() and "generate" in gguf.read_text(), "the first question")
    if behaviour == "answer-hang":
        ok(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    ended = shared_daemon.wait_for_job(job["id"])
    assert ended["status"] == ("cancelled" if behaviour == "answer-hang" else "failed")
    name = f"ft:{BASE}:local::{job['id'][-8:]}"
    assert error_of(shared_daemon.chat("hi", model=name), 404)["code"] == "model_not_found"
    wait_for(lambda: not children_of(shared_daemon, job), "its engine to be gone")


def test_model_that_hangs_on_its_first_question_fails_its_job_and_the_next_one_runs(daemon_with):
    daemon = daemon_with(engine_stall_seconds=5)
    job, next_one = daemon.create_job("answer-hang"), daemon.create_job()
    failed = daemon.wait_for_job(job["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "engine_stalled")
    assert daemon.wait_for_job(next_one["id"])["status"] == "succeeded"
    wait_for(lambda: not children_of(daemon, job), "its engine to be gone")


def test_finished_job_cannot_be_cancelled(shared_daemon):
    job = shared_daemon.wait_for_job(shared_daemon.create_job()["id"], "succeeded")
    error = error_of(shared_daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"), 400)
    assert error["code"] == "invalid_job_status"
    assert shared_daemon.job(job["id"]) == job


def test_validation_file_reaches_the_trainer(shared_daemon):
    file = shared_daemon.upload(rows(count=3))
    job = shared_daemon.create_job(validation_file=file["id"])
    shared_daemon.wait_for_job(job["id"], "succeeded")
    data = shared_daemon.state_dir / "jobs" / job["id"] / "data"
    assert (data / "validation.jsonl").read_bytes() == rows(count=3)
    assert job["validation_file"] == file["id"]


def test_job_whose_base_has_gone_fails_with_the_reason(daemon):
    running, waiting = daemon.create_job("hang"), daemon.create_job()
    daemon.wait_for_event(running["id"], "hanging as")
    path = daemon.state_dir / "appliance.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM base_models")
    ok(daemon.http.post(f"/v1/fine_tuning/jobs/{running['id']}/cancel"))
    done = daemon.wait_for_job(waiting["id"], "succeeded", "failed")
    assert done["status"] == "failed"
    assert done["error"]["code"] == "base_model_removed"
    assert BASE in done["error"]["message"]


def test_children_see_only_the_gpu_that_is_planned_with(daemon_with, set_gpus):
    small, large = (
        {**GPU, "uuid": uuid, "memory_total": gib << 30}
        for uuid, gib in (("GPU-s", 10), ("GPU-l", 24))
    )
    set_gpus(small, large)
    daemon = daemon_with()
    ok(daemon.chat("hello"))
    job = daemon.create_job("hang")
    trainer = hung_group(daemon, job, "training")
    log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    engine = int(log.read_text().split()[1])
    for pid in (trainer, engine):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=GPU-l" in environment
