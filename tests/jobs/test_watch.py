"""A fake GPU gets hot and cools down, and gives its power, while a real daemon trains on it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from appliance import durable
from appliance.errors import Busy
from appliance.hardware.energy import Used
from appliance.hardware.sensors import Sensors
from appliance.hardware.telemetry import Reading
from appliance.jobs import watch
from appliance.jobs.heat import Heat
from appliance.store.store import Store
from tests.daemon_process import DaemonProcess, group_members, ok, state_of, wait_for
from tests.hardware.test_telemetry import GPU
from tests.jobs.test_course import children_of

LIMIT_CELSIUS = 86  # of the L4's profile
COOL_CELSIUS = 81
ENERGY = ("watt_hours", "known_seconds", "unknown_seconds")


@pytest.fixture
def gpu_at(set_gpus):
    """Sets the temperature; there is a second GPU, so that the hotter one must be found."""

    def at(celsius):
        set_gpus({**GPU, "temperature": 40}, {**GPU, "name": "NVIDIA L4b", "temperature": celsius})

    at(60)
    return at


def told(daemon, job, word):
    return [event for event in daemon.events(job["id"]) if event["message"].startswith(word)]


def paused_child(daemon, job, *, times=1):
    """The trainer's process group, once its whole group is stopped."""
    wait_for(lambda: len(told(daemon, job, "Paused:")) == times, "a pause", why=daemon.log_tail)
    (pid,) = children_of(daemon, job)
    wait_for(lambda: {state_of(each) for each in group_members(pid)} == {"T"}, "the child to stop")
    return pid


def test_job_pauses_while_the_device_is_hot_and_succeeds_when_it_has_cooled(daemon_with, gpu_at):
    gpu_at(LIMIT_CELSIUS)
    daemon = daemon_with()
    job = daemon.create_job("long")
    pid = paused_child(daemon, job)
    (event,) = told(daemon, job, "Paused:")
    assert event["message"] == "Paused: NVIDIA L4b is at 86 °C, the limit is 86 °C"
    assert (event["level"], event["type"]) == ("warn", "message")
    metrics = daemon.state_dir / "jobs" / job["id"] / "training" / "metrics.jsonl"
    before = metrics.read_bytes()
    time.sleep(1.0)
    assert metrics.read_bytes() == before
    assert state_of(pid) == "T"
    assert daemon.job(job["id"])["status"] == "running"
    gpu_at(COOL_CELSIUS)
    daemon.wait_for_event(job["id"], "Continued after")
    assert daemon.wait_for_job(job["id"])["status"] == "succeeded"
    messages = [each["message"] for each in daemon.events(job["id"])]
    assert [each for each in messages if each.startswith("Step ")] == [
        f"Step {n}/120" for n in range(1, 121)
    ]
    assert len(told(daemon, job, "Continued")) == 1


def test_each_pause_is_told_and_a_paused_job_can_be_cancelled(daemon_with, gpu_at):
    daemon = daemon_with()
    job = daemon.create_job("endless")
    daemon.wait_for_event(job["id"], "Step 1/")
    gpu_at(LIMIT_CELSIUS + 3)
    paused_child(daemon, job)
    gpu_at(COOL_CELSIUS)
    daemon.wait_for_event(job["id"], "Continued after")
    gpu_at(LIMIT_CELSIUS)
    group = paused_child(daemon, job, times=2)
    cancelled = ok(daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    wait_for(lambda: not group_members(group), "the group to be gone")
    assert cancelled["status"] == "cancelled"
    # It has no event about it: nothing is said of a job that has ended.
    assert cancelled["appliance"]["energy"]["watt_hours"] > 0
    assert daemon.events(job["id"])[-1]["message"] == "The job was cancelled"


def test_paused_child_does_not_outlive_a_killed_daemon(daemon_with, gpu_at):
    gpu_at(LIMIT_CELSIUS)
    daemon = daemon_with()
    job = daemon.create_job("long")
    group = paused_child(daemon, job)
    daemon.kill()
    wait_for(lambda: not group_members(group), "the group to be gone")
    gpu_at(COOL_CELSIUS)
    daemon.start()
    assert daemon.wait_for_job(job["id"])["status"] == "succeeded"
    assert told(daemon, job, "Continued") == []


def test_release_pauses_too(daemon_with, gpu_at):
    daemon = daemon_with()
    job = daemon.create_job("release-hang")
    daemon.wait_for_event(job["id"], "hanging as")
    gpu_at(LIMIT_CELSIUS)
    wait_for(lambda: told(daemon, job, "Paused:"), "a pause", why=daemon.log_tail)
    pid = int((daemon.state_dir / "jobs" / job["id"] / "release" / "hung.pid").read_text())
    members = group_members(pid)
    assert len(members) == 2
    wait_for(lambda: {state_of(each) for each in members} == {"T"}, "the child to stop")
    assert daemon.stop() == 0
    wait_for(lambda: not group_members(pid), "the group to be gone")


def test_energy_is_told_at_the_end_and_added_to_after_a_restart(daemon_with, gpu_at):
    daemon = daemon_with()
    job = daemon.create_job("long")
    daemon.wait_for_event(job["id"], "Step 30/")
    daemon.stop()
    path = daemon.state_dir / "jobs" / job["id"] / "energy.json"
    before = durable.read_json(path, Used)
    assert before.watt_hours > 0
    # More than the rest of the job can add.
    durable.write_json(path, Used(watt_hours=50.0, known_seconds=9000.0, unknown_seconds=1000.0))
    daemon.start()
    done = daemon.wait_for_job(job["id"], "succeeded")
    used = done["appliance"]["energy"]
    assert set(used) == set(ENERGY)
    assert 50.0 < used["watt_hours"] < 60.0
    assert used["known_seconds"] > 9000.0
    (event,) = told(daemon, job, "The accelerator used")
    assert event["data"] == used
    assert event["message"].startswith(f"The accelerator used {used['watt_hours']:.2f} Wh while")
    assert "(power was known for 90 % of 100" in event["message"]
    # Both GPUs at 68.5 W.
    added = (used["watt_hours"] - 50.0) * 3600 / (used["known_seconds"] - 9000.0)
    assert added == pytest.approx(137.0, rel=0.02)


def test_failed_job_tells_its_energy_too(daemon_with, gpu_at):
    daemon = daemon_with()
    job = daemon.create_job("release-refuse")
    failed = daemon.wait_for_job(job["id"], "failed")
    messages = [event["message"] for event in daemon.events(job["id"])]
    assert messages[-2].startswith("The accelerator used")
    assert messages[-1].startswith("The job failed")
    assert failed["appliance"]["energy"]["known_seconds"] > 0


def test_power_that_is_never_told_makes_no_event(daemon_with, set_gpus):
    set_gpus({**GPU, "power_mw": "NOT_SUPPORTED"})
    daemon = daemon_with()
    job = daemon.create_job()
    assert daemon.wait_for_job(job["id"], "succeeded")["appliance"]["energy"] is None
    assert told(daemon, job, "The accelerator") == []


# --- what happens at its edges, without a daemon ---


class FakeChild:
    name, returncode = "a child", None

    def __init__(self):
        self.done = []

    def pause(self):
        self.done.append("pause")

    def resume(self):
        self.done.append("resume")


HOT = Reading(device="gpu0", name="a GPU", temperature_celsius=80.0, power_watts=10.0)


def watch_of(tmp_path, report, heat):
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    sensors = Sensors(lambda: [HOT])
    return watch._Watch(tmp_path / "energy.json", Used(), sensors, heat, heartbeat, report)


def test_without_a_limit_nothing_pauses(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    child, stored = FakeChild(), []
    asyncio.run(watch_of(tmp_path, stored.extend, None).poll(child))
    assert (child.done, stored) == ([], [])


def test_damaged_energy_file_costs_neither_a_job_nor_its_description(settings, tmp_path, caplog):
    store = Store(settings.state_dir)
    path = store.jobs_directory / "a-job" / "energy.json"
    path.parent.mkdir()
    path.write_bytes(b"\xff{")

    async def through():
        async with watch.watching(store, "a-job", tmp_path, Sensors(lambda: [HOT]), None):
            assert "energy file is damaged" in caplog.text
            assert watch.energy_of(store, "a-job") is None

    try:
        asyncio.run(through())
        assert watch.energy_of(store, "a-job")["watt_hours"] >= 0
    finally:
        store.close()


def test_events_that_cannot_be_stored_are_told_later(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    stored, locked = [], [True]

    def report(events):
        if locked:
            raise Busy("database_locked", "not now")
        stored.extend(events)

    async def through():
        child, tested = FakeChild(), watch_of(tmp_path, report, Heat(80))
        await tested.poll(child)
        assert child.done == ["pause"]
        locked.clear()
        await tested.poll(child)
        await tested.poll(child)
        assert child.done == ["pause"]

    asyncio.run(through())
    assert [event.message for event in stored] == ["Paused: a GPU is at 80 °C, the limit is 80 °C"]


def test_child_that_has_ended_is_not_called_paused(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    stored = []
    child = FakeChild()
    child.returncode = 0
    asyncio.run(watch_of(tmp_path, stored.extend, Heat(80)).poll(child))
    assert (child.done, stored) == ([], [])


def test_energy_is_saved_now_and_then_and_a_full_disk_is_no_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    monkeypatch.setattr(watch, "SAVE_SECONDS", 0.0)
    path = tmp_path / "energy.json"

    async def through():
        tested = watch_of(tmp_path, lambda _: None, None)
        path.mkdir()
        await tested.measure()
        await tested.poll(FakeChild())
        path.rmdir()
        await tested.poll(FakeChild())

    asyncio.run(through())
    assert "energy not stored yet" in caplog.text
    assert set(json.loads(path.read_text())) == set(ENERGY)
    assert durable.read_json(path, Used).known_seconds > 0


def test_child_that_has_shown_no_life_yet_is_not_paused(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    stored = []

    async def through():
        child, tested = FakeChild(), watch_of(tmp_path, stored.extend, Heat(80))
        (tmp_path / "heartbeat").unlink()
        await tested.poll(child)
        assert (child.done, stored) == ([], [])
        (tmp_path / "heartbeat").touch()
        await tested.poll(child)
        assert child.done == ["pause"]

    asyncio.run(through())


SLOW_START = """
import os, time
if os.environ.get("APPLIANCE_DEATH_FD"):
    time.sleep(4)
"""


@pytest.mark.slow
def test_child_that_starts_slowly_on_a_hot_device_does_not_outlive_the_daemon(
    daemon_with, gpu_at, tmp_path, monkeypatch
):
    gpu_at(LIMIT_CELSIUS)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_START)
    environment = DaemonProcess.environment

    def with_slow_children(self):
        given = environment(self)
        return {**given, "PYTHONPATH": f"{tmp_path / 'slow'}:{given['PYTHONPATH']}"}

    monkeypatch.setattr(DaemonProcess, "environment", with_slow_children)
    daemon = daemon_with()
    job = daemon.create_job("long")
    wait_for(lambda: children_of(daemon, job), "the trainer to be started")
    (pid,) = children_of(daemon, job)
    # Long enough for it to be judged, and not for its first sign of life.
    time.sleep(3)
    daemon.kill()
    wait_for(lambda: not group_members(pid), "the trainer to be gone")
