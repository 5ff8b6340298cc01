"""`appliance demo`: the whole job on a real model, and an honest table of what it was worth.

Everything goes through the HTTP API, as an app on the LAN would do it; only the starter model's import
and the daemon's start are done here.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from appliance import detached, process
from appliance.cli import output
from appliance.cli.client import Client, connect
from appliance.cli.demo_scores import Example, Scores, evaluate, read_example
from appliance.cli.follow import follow_job
from appliance.cli.models import import_base
from appliance.cli.options import JsonPath, with_settings
from appliance.cli.stop import stop_daemon
from appliance.errors import ApplianceError, ChildFailed, NotFound
from appliance.settings import CHECKOUT, STARTER, Settings

STARTER_NAME = "smollm2-135m-instruct"
START_TIMEOUT_SECONDS = 60.0
SHOWN_ROWS = 8
# The base goes on and on; the tuned model's answer is shown whole.
SHOWN_CHARACTERS = 100
# Borders and two columns of `{"machine":"BAL-19",` and its like, which cannot be read when broken.
JSON_WIDTH = 53
MIN_PROSE_WIDTH = 10


class DemoResult(msgspec.Struct, kw_only=True):
    """What `--json` writes. The four scores are shares of the held-out rows."""

    base_exact_match: float
    base_prompted_exact_match: float
    nearest_exact_match: float
    tuned_exact_match: float
    heldout_rows: int
    seconds: float
    training_seconds: float
    model: str
    releases: list[dict[str, Any]]


@with_settings()
def demo(
    settings: Settings,
    example: Annotated[Path, typer.Option(help="Directory of the example dataset.")] = CHECKOUT
    / "examples"
    / "factory_faults",
    starter: Annotated[Path, typer.Option(help="Directory with the starter base model.")] = STARTER,
    exit_: Annotated[bool, typer.Option("--exit", help="Stop the daemon at the end.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Fine-tune the starter model on the example and show what it learned."""
    started_at = time.monotonic()
    # As a key press does: what was started is stopped, or it is said that it goes on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    data = read_example(example)
    _step("1/5", f"Base model {STARTER_NAME}")
    _ensure_starter(settings, starter)
    _step("2/5", f"Daemon at {settings.url}, state in {settings.state_dir}")
    _ensure_daemon(settings)
    try:
        result, scores = _run(settings, example, data, started_at)
    except BaseException:
        # A key press too: nothing may go on unseen.
        _end(settings, stop=exit_)
        raise
    if json_path != "-":
        _step("5/5", f"Done in {result.seconds:.0f} s")
        _print_tables(data, scores, result)
    output.show(result, json_path, "")
    _end(settings, stop=exit_)
    if not exit_:
        # Where the JSON goes to stdout, it goes there alone.
        console = output.error_console if json_path == "-" else output.console
        _print_how_to_go_on(console, settings, result.model, data)


def _run(
    settings: Settings, example: Path, data: Example, started_at: float
) -> tuple[DemoResult, Scores]:
    with connect(settings) as client:
        _step("3/5", f"Fine-tuning on {len(data.train)} rows: training, release, first answer")
        job = _fine_tune(client, example)
        _step("4/5", f"Asking {len(data.heldout)} held-out questions")
        scores = evaluate(client, data, base=STARTER_NAME, tuned=job["fine_tuned_model"])
        releases = client.get("/api/v1/models")["releases"]
    return _result(job, scores, releases, time.monotonic() - started_at), scores


def _end(settings: Settings, *, stop: bool) -> None:
    if not stop:
        command = shlex.join(
            [f"{sys.prefix}/bin/appliance", "stop", "--state-dir", str(settings.state_dir)]
        )
        _note(f"the daemon goes on; stop it with: {command}")
        return
    # One that has died is no reason to hide why the demo ends.
    with contextlib.suppress(NotFound):
        stop_daemon(settings)
    _note("the daemon has stopped")


def _step(number: str, text: str) -> None:
    output.error_console.print(f"[bold]{number}[/bold] {escape(text)}")


def _ensure_starter(settings: Settings, starter: Path) -> None:
    from appliance.store.store import Store

    store = Store(settings.state_dir, settings.storage_quota_bytes)
    try:
        base = store.catalog.find_base(STARTER_NAME)
    finally:
        store.close()
    if base is None:
        provenance = json.loads((starter / "provenance.json").read_text(encoding="utf-8"))
        base = import_base(
            settings,
            starter / provenance["file"],
            STARTER_NAME,
            provenance["licence"],
            provenance["origin"],
        )
    _note(f"{base.parameters:,} parameters, licence {base.licence}, from {base.source}")


def _ensure_daemon(settings: Settings) -> None:
    """Start a daemon unless ours runs already; one that does not come up is not left behind."""
    if _answers(settings):
        _note("it runs already")
        return
    log = settings.state_dir / "daemon.log"
    flags = [
        f"--{name.replace('_', '-')}={getattr(settings, name)}"
        for name in settings.__struct_fields__
    ]
    pid = detached.start([*process.python_child("appliance", "serve"), *flags], log)
    try:
        _wait_until_it_answers(settings, pid, log)
    except BaseException:
        if detached.is_running(pid):
            detached.stop(pid)
        raise
    _note(f"started as process {pid}, log in {log}")


def _wait_until_it_answers(settings: Settings, pid: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not _answers(settings):
        if time.monotonic() > deadline or not detached.is_running(pid):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise ChildFailed(
                "daemon_did_not_start",
                f"the daemon should answer at {settings.url}; its last words: {' '.join(lines)}",
                next_step=f"see {log}",
            )
        time.sleep(0.2)


def _answers(settings: Settings) -> bool:
    """Whether the daemon of this state directory answers: it knows our admin key."""
    if not settings.admin_key_file.exists():
        return False
    try:
        with connect(settings) as client:
            client.get("/api/v1/keys")
    except ApplianceError as exc:
        if exc.code in ("no_daemon", "no_answer"):
            return False
        raise
    except httpx.HTTPError:
        return False
    return True


def _fine_tune(client: Client, example: Path) -> dict[str, Any]:
    train = example / "train.jsonl"
    file = client.upload("/v1/files", train.name, train.read_bytes(), {"purpose": "fine-tune"})
    _note(f"{train.name} is {file['id']}: every row was checked")
    request = json.loads((example / "job.json").read_text(encoding="utf-8"))
    job = client.post("/v1/fine_tuning/jobs", {**request, "training_file": file["id"]})
    job = follow_job(client, job["id"])
    if job["status"] != "succeeded":
        raise ChildFailed("job_failed", f"job {job['id']} {job['status']}: {job['error']}")
    return job


def _result(
    job: dict[str, Any], scores: Scores, releases: list[dict[str, Any]], seconds: float
) -> DemoResult:
    ours = [release for release in releases if release["name"] == job["fine_tuned_model"]]
    if not ours:
        raise NotFound("no_release", f"{job['fine_tuned_model']} should be listed; it is not")
    return DemoResult(
        base_exact_match=scores.share("base"),
        base_prompted_exact_match=scores.share("prompted"),
        nearest_exact_match=scores.share("nearest"),
        tuned_exact_match=scores.share("tuned"),
        heldout_rows=len(scores.expected),
        seconds=seconds,
        training_seconds=job["finished_at"] - job["created_at"],
        model=job["fine_tuned_model"],
        releases=ours[0]["files"],
    )


def _print_tables(data: Example, scores: Scores, result: DemoResult) -> None:
    rows = [
        (
            question,
            _by_field(scores.expected[i]),
            textwrap.shorten(scores.answers["base"][i], SHOWN_CHARACTERS, placeholder=" …"),
            _by_field(scores.answers["tuned"][i]),
        )
        for i, question in enumerate(data.heldout_questions[:SHOWN_ROWS])
    ]
    columns = ("fault report", "expected", "base", "tuned")
    side_by_side = output.table("Held-out reports, not seen in training", columns, rows)
    side_by_side.show_lines = True
    prose = max(MIN_PROSE_WIDTH, (output.console.width - JSON_WIDTH) // 2)
    side_by_side.columns[0].max_width = side_by_side.columns[2].max_width = prose
    output.console.print(side_by_side)
    summary = (
        ("base model as it is", f"{result.base_exact_match:.1%}"),
        (
            "base model, told the schema and three examples",
            f"{result.base_prompted_exact_match:.1%}",
        ),
        ("nearest training row", f"{result.nearest_exact_match:.1%}"),
        ("fine-tuned model", f"{result.tuned_exact_match:.1%}"),
    )
    title = f"Exact match over all {result.heldout_rows} held-out reports"
    output.console.print(output.table(title, ("who answers", "exact match"), summary))


def _by_field(answer: str) -> str:
    """One-line JSON with a field a line: side by side in a narrow terminal, it would break in words."""
    return answer.replace(',"', ',\n"')


def _print_how_to_go_on(console: Console, settings: Settings, model: str, data: Example) -> None:
    body = {
        "model": model,
        "temperature": 0,
        "messages": [*data.system_messages, {"role": "user", "content": data.heldout_questions[0]}],
    }
    console.print(
        f"""
The daemon goes on running at {settings.url}
The admin key is in {settings.admin_key_file}

Ask it from the shell:

curl {settings.url}/v1/chat/completions \\
  -H "Authorization: Bearer $(cat {settings.admin_key_file})" \\
  -H "Content-Type: application/json" \\
  -d '{json.dumps(body)}'

or from Python ({sys.prefix}/bin/python has the client):

from openai import OpenAI
client = OpenAI(base_url="{settings.url}/v1", api_key=open("{settings.admin_key_file}").read().strip())
print(client.chat.completions.create(**{body!r}).choices[0].message.content)""",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _note(text: str) -> None:
    output.error_console.print(f"    {text}", markup=False, highlight=False, soft_wrap=True)
