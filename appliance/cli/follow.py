"""The live view of a job: messages as they come, and a bar with loss, step, tokens/s and ETA."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from appliance.cli import output
from appliance.cli.client import Client

POLL_SECONDS = 1.0
ENDED = frozenset({"succeeded", "failed", "cancelled"})
EVENTS_PER_PAGE = 1000


def follow_job(client: Client, job_id: str) -> dict[str, Any]:
    """Show the job until it has ended; returns it as it then is."""
    seen: set[str] = set()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.error_console) as progress:
        bar = progress.add_task("training", total=1, detail="", visible=False)
        while True:
            job: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{job_id}")
            for event in _new_events(client, job_id, seen):
                if "total_steps" in (event["data"] or {}):
                    _advance(progress, bar, event["data"], job["estimated_finish"])
                else:
                    progress.console.print(escape(f"  {event['level']}: {event['message']}"))
            if job["status"] in ENDED:
                return job
            time.sleep(POLL_SECONDS)


def _new_events(client: Client, job_id: str, seen: set[str]) -> list[dict[str, Any]]:
    found = client.get(f"/v1/fine_tuning/jobs/{job_id}/events", limit=EVENTS_PER_PAGE)["data"]
    fresh = [event for event in reversed(found) if event["id"] not in seen]
    seen.update(event["id"] for event in fresh)
    return fresh


def _advance(
    progress: Progress, bar: Any, data: dict[str, Any], estimated_finish: int | None
) -> None:
    eta = f"{max(0, estimated_finish - time.time()):.0f} s left" if estimated_finish else ""
    detail = (
        f"loss {data['train_loss']:.3f}  {data.get('tokens_per_second', 0):.0f} tokens/s  {eta}"
    )
    progress.update(
        bar, visible=True, total=data["total_steps"], completed=data["step"], detail=detail
    )
