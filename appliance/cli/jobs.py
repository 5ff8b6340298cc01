"""`appliance jobs`: create, list, show, follow, cancel."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.follow import follow_job
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.errors import UNDECODABLE, InvalidInput
from appliance.settings import Settings

app = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True)

JOBS = "/v1/fine_tuning/jobs"
TIMES = ("created_at", "finished_at", "estimated_finish")


@app.command("create")
@with_settings(CONNECTION)
def create(
    settings: Settings,
    model: Annotated[str, typer.Argument(help="Base model, or a fine-tuned one to go on from.")],
    training_file: Annotated[str, typer.Argument(help="Id that `files upload` printed.")],
    validation_file: Annotated[
        str | None,
        typer.Option(help="Id of a file that only measures; else some rows are kept back."),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Word for the new model's name.")] = None,
    options: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with more fields of the request, "
            "such as examples/factory_faults/job.json; docs/api.md names them."
        ),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Start fine-tuning MODEL on an uploaded file and print the job's id."""
    for given in filter(None, (training_file, validation_file)):
        if Path(given).is_file():
            raise InvalidInput(
                "not_uploaded",
                f"a file should be given by the id that it got when it was uploaded; {given} is a path",
                next_step=f"appliance files upload {shlex.quote(given)}",
            )
    body = _read_options(options) if options else {}
    named = {"validation_file": validation_file, "suffix": suffix}
    body |= {"model": model, "training_file": training_file}
    body |= {name: value for name, value in named.items() if value is not None}
    with connect(settings) as client:
        job = client.post(JOBS, body)
    output.show(job, json_path, job["id"])


def _read_options(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except UNDECODABLE as exc:
        raise InvalidInput(
            "invalid_options", f"{path} should hold one JSON object, but: {exc}"
        ) from exc


@app.command("list")
@with_settings(CONNECTION)
def list_jobs(settings: Settings, limit: int = 20, json_path: JsonPath = None) -> None:
    """List jobs, newest first."""
    with connect(settings) as client:
        jobs = client.get(JOBS, limit=limit)["data"]
    rows = (
        (
            job["id"],
            output.local_time(job["created_at"]),
            job["status"],
            job["fine_tuned_model"] or job["model"],
        )
        for job in jobs
    )
    output.show(jobs, json_path, output.listing(("id", "created", "status", "model"), rows))


@app.command("show")
@with_settings(CONNECTION)
def show(settings: Settings, job_id: str, json_path: JsonPath = None) -> None:
    """Show one job and its latest events."""
    with connect(settings) as client:
        job = client.get(f"{JOBS}/{job_id}")
        events = client.get(f"{JOBS}/{job_id}/events", limit=10)["data"]
    lines = [(name, _said(name, value)) for name, value in job.items() if _says(value)]
    lines += [
        (output.local_time(event["created_at"]), event["message"]) for event in reversed(events)
    ]
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


def _says(value: Any) -> bool:
    """Not null, not empty, and not an object of nulls, which a job without an error has for one."""
    return any(map(_says, value.values())) if isinstance(value, dict) else value not in (None, [])


def _said(name: str, value: Any) -> str:
    if name in TIMES:
        return output.local_time(value)
    return value if isinstance(value, str) else json.dumps(value)


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
