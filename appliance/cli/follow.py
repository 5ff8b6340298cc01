"""What a person sees of long work: messages as they come, and a bar for each stage with its time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from appliance.cli import output
from appliance.cli.client import Client

POLL_SECONDS = 1.0
# With all that stands beside it, no wider than a terminal of 80 columns.
BAR_WIDTH = 15
ENDED = frozenset({"succeeded", "failed", "cancelled"})
EVENTS_PER_PAGE = 1000


class LiveView:
    """A bar a stage, and lines of text above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """A line of text."""
        self._progress.console.print(escape(f"  {text}"), highlight=False)

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of a stage; the first call shows it."""
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total, detail="")
        self._progress.update(self._bars[stage], total=total, completed=done, detail=detail)

    def finish(self) -> None:
        """All that was shown has come to its end."""
        for task in self._progress.tasks:
            self._progress.update(task.id, completed=task.total)


@contextmanager
def live_view() -> Iterator[LiveView]:
    """A live view on the terminal while the block runs."""
    columns = (
        TextColumn("    {task.description:9}"),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[detail]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=output.error_console) as progress:
        yield LiveView(progress)


def follow_job(client: Client, job_id: str) -> dict[str, Any]:
    """Show the job until it has ended; returns it as it then is."""
    seen: set[str] = set()
    with live_view() as view:
        while True:
            job: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{job_id}")
            for event in _new_events(client, job_id, seen):
                _show(view, event)
            if job["status"] in ENDED:
                if job["status"] == "succeeded":
                    view.finish()
                return job
            time.sleep(POLL_SECONDS)


def _new_events(client: Client, job_id: str, seen: set[str]) -> list[dict[str, Any]]:
    found = client.get(f"/v1/fine_tuning/jobs/{job_id}/events", limit=EVENTS_PER_PAGE)["data"]
    fresh = [event for event in reversed(found) if event["id"] not in seen]
    seen.update(event["id"] for event in fresh)
    return fresh


def _show(view: LiveView, event: dict[str, Any]) -> None:
    data = event["data"] or {}
    if "train_loss" in data:
        detail = f"loss {data['train_loss']:.3f} {data.get('tokens_per_second', 0):.0f} tokens/s"
        view.advance("training", data["step"], data["total_steps"], detail)
        return
    view.say(f"{event['level']}: {event['message']}")
    if "total_steps" in data:
        # A step that begins has not been done.
        view.advance("release", data["step"] - 1, data["total_steps"])
