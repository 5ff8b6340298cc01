"""`appliance jobs`: create, list, show, follow, cancel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.follow import follow_job
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.errors import InvalidInput
from appliance.settings import Settings

app = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True)

JOBS = "/v1/fine_tuning/jobs"


@app.command("create")
@with_settings(CONNECTION)
def create(
    settings: Settings,
    model: str,
    training_file: str,
    validation_file: str | None = None,
    suffix: str | None = None,
    options: Annotated[
        Path | None, typer.Option(help="JSON file with more fields of the request.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Start fine-tuning MODEL on an uploaded file."""
    for given in filter(None, (training_file, validation_file)):
        if Path(given).is_file():
            raise InvalidInput(
                "not_uploaded",
                f"a file should be given by the id that it got when it was uploaded; {given} is a path",
                next_step=f"appliance files upload {given}",
            )
    body = _read_options(options) if options else {}
    named = {"validation_file": validation_file, "suffix": suffix}
    body |= {"model": model, "training_file": training_file}
    body |= {name: value for name, value in named.items() if value is not None}
    with connect(settings) as client:
        job = client.post(JOBS, body)
    output.show(job, json_path, f"{job['id']}  {job['status']}")


def _read_options(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as exc:
        raise InvalidInput(
            "invalid_options", f"{path} should hold one JSON object, but: {exc}"
        ) from exc


@app.command("list")
@with_settings(CONNECTION)
def list_jobs(settings: Settings, limit: int = 20, json_path: JsonPath = None) -> None:
    """List jobs, newest first."""
    with connect(settings) as client:
        jobs = client.get(JOBS, limit=limit)["data"]
    columns = ("id", "status", "model", "fine_tuned_model", "created_at")
    output.show(
        jobs,
        json_path,
        output.listing("Jobs", columns, ([job[c] for c in columns] for job in jobs)),
    )


@app.command("show")
@with_settings(CONNECTION)
def show(settings: Settings, job_id: str, json_path: JsonPath = None) -> None:
    """Show one job and its latest events."""
    with connect(settings) as client:
        job = client.get(f"{JOBS}/{job_id}")
        events = client.get(f"{JOBS}/{job_id}/events", limit=10)["data"]
    lines = [(name, json.dumps(value)) for name, value in job.items()]
    lines += [("event", event["message"]) for event in reversed(events)]
    output.show(
        {"job": job, "events": events}, json_path, output.table(job_id, ("field", "value"), lines)
    )


@app.command("follow")
@with_settings(CONNECTION)
def follow(settings: Settings, job_id: str, json_path: JsonPath = None) -> None:
    """Watch a job until it ends; exit status 1 if it does not succeed."""
    with connect(settings) as client:
        job = follow_job(client, job_id)
    output.show(job, json_path, _outcome(job))
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _outcome(job: dict[str, Any]) -> str:
    if job["status"] == "succeeded":
        return f"succeeded: {job['fine_tuned_model']}"
    error = job["error"]
    return (
        f"{job['status']}: {error['code']}: {error['message']}" if error["code"] else job["status"]
    )


@app.command("cancel")
@with_settings(CONNECTION)
def cancel(settings: Settings, job_id: str, json_path: JsonPath = None) -> None:
    """Cancel a job; its processes are gone when this returns."""
    with connect(settings) as client:
        job = client.post(f"{JOBS}/{job_id}/cancel")
    output.show(job, json_path, f"{job_id} {job['status']}")
