"""A model goes with everything that only it needs, and only when nothing depends on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.daemon_process import BASE, DaemonProcess, error_of, ok, wait_for


def finished(daemon: DaemonProcess, **body: Any) -> Any:
    job = daemon.wait_for_job(daemon.create_job(**body)["id"])
    assert job["status"] == "succeeded"
    return job


def job_directory(daemon: DaemonProcess, job: Any) -> Path:
    return daemon.state_dir / "jobs" / job["id"]


def names(daemon: DaemonProcess) -> set[str]:
    return {each["id"] for each in ok(daemon.http.get("/v1/models"))["data"]}


def test_a_fine_tuned_model_goes_with_its_files_and_its_job_is_still_told(
    daemon: DaemonProcess,
) -> None:
    job = finished(daemon)
    model = job["fine_tuned_model"]
    ok(daemon.chat("hi", model=model))
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.key)
    deleted = client.models.delete(model)
    assert (deleted.id, deleted.object, deleted.deleted) == (model, "model", True)
    assert names(daemon) == {BASE}
    left = {path.name for path in job_directory(daemon, job).iterdir()}
    assert left.isdisjoint({"release", "training", "data"})
    assert error_of(daemon.chat("hi", model=model), 404)["code"] == "model_not_found"
    assert error_of(daemon.http.delete(f"/v1/models/{model}"), 404)["code"] == "model_not_found"
    assert daemon.job(job["id"])["fine_tuned_model"] == model
    # Nobody keeps its memory.
    assert model not in daemon.http.get("/metrics").text
    ok(daemon.chat("hi"))


def test_a_base_goes_when_nothing_is_made_of_it(daemon: DaemonProcess) -> None:
    job = finished(daemon)
    error = error_of(daemon.http.delete(f"/v1/models/{BASE}"), 400)
    assert error["code"] == "model_in_use"
    assert job["fine_tuned_model"] in error["message"]
    ok(daemon.http.delete(f"/v1/models/{job['fine_tuned_model']}"))
    ok(daemon.http.delete(f"/v1/models/{BASE}"))
    assert names(daemon) == set()
    assert list((daemon.state_dir / "base_models").iterdir()) == []


def test_a_base_whose_files_are_gone_already_can_be_forgotten(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.state_dir / "base_models" / BASE)
    ok(daemon.http.delete(f"/v1/models/{BASE}"))
    assert names(daemon) == set()


@pytest.mark.parametrize("variant", ["", "@Q4_K_M", "@adapter"])
def test_what_an_alias_means_stays(daemon: DaemonProcess, variant: str) -> None:
    model = finished(daemon)["fine_tuned_model"]
    ok(daemon.http.put("/api/v1/aliases/line-3", json={"model": model + variant}))
    error = error_of(daemon.http.delete(f"/v1/models/{model}"), 400)
    assert error["code"] == "model_in_use"
    assert "alias 'line-3'" in error["message"]
    assert error_of(daemon.http.delete("/v1/models/line-3"), 404)["code"] == "model_not_found"
    ok(daemon.http.delete("/api/v1/aliases/line-3"))
    ok(daemon.http.delete(f"/v1/models/{model}"))


def test_what_a_job_builds_on_stays_until_it_has_ended(daemon: DaemonProcess) -> None:
    earlier = finished(daemon)["fine_tuned_model"]
    job = daemon.create_job("endless", model=earlier)
    for model in (earlier, BASE):
        assert error_of(daemon.http.delete(f"/v1/models/{model}"), 400)["code"] == "model_in_use"
    ok(daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    ok(daemon.http.delete(f"/v1/models/{earlier}"))


def test_only_the_admin_deletes(daemon: DaemonProcess) -> None:
    key = ok(daemon.http.post("/api/v1/keys", json={"name": "app"}))["secret"]
    with daemon.client(key) as app:
        error_of(app.delete(f"/v1/models/{BASE}"), 403)
    assert names(daemon) == {BASE}


def test_what_a_kill_left_is_removed_at_the_next_start(daemon: DaemonProcess) -> None:
    from appliance.store.store import Store

    deleted, kept = finished(daemon), finished(daemon)
    daemon.kill()
    store = Store(daemon.state_dir)
    store.catalog.delete(deleted["fine_tuned_model"])
    store.close()
    half = daemon.state_dir / "tmp" / "deleted-other-base"
    (half / "hf").mkdir(parents=True)
    unknown = daemon.state_dir / "base_models" / "of-an-older-backup"
    unknown.mkdir()
    daemon.start()
    parts = [job_directory(daemon, deleted) / part for part in ("release", "training", "data")]
    wait_for(
        lambda: not any(path.exists() for path in (half, *parts)),
        "what is left of deleted models to be removed",
    )
    assert (job_directory(daemon, kept) / "release" / "model-Q4_K_M.gguf").exists()
    assert (daemon.state_dir / "base_models" / BASE).exists()
    # What nobody deleted is nobody's to remove.
    assert unknown.exists()
    assert "belongs to no base model" in daemon.log.read_text()
