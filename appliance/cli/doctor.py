"""`appliance doctor`: what works here and what does not. Needs no daemon."""

from __future__ import annotations

import asyncio
from types import ModuleType

import typer

from appliance.checks.finding import Finding
from appliance.cli import output
from appliance.cli.options import JsonPath, with_settings
from appliance.errors import ApplianceError
from appliance.settings import Settings


@with_settings(
    ("state_dir", "profile", "profile_dir", "profile_override_file", "converter_dir", "threads")
)
def doctor(settings: Settings, json_path: JsonPath = None) -> None:
    """Check this box; exit status 1 if something does not work."""
    findings = asyncio.run(_run_all(settings))
    rows = [(each.check, each.outcome, each.found, each.next_step) for each in findings]
    columns = ("check", "outcome", "found", "next step")
    output.show(findings, json_path, output.table("Doctor", columns, rows))
    if any(each.outcome == "failed" for each in findings):
        raise typer.Exit(1)


async def _run_all(settings: Settings) -> list[Finding]:
    # The database and its libraries come with them: too slow for every other command to wait for.
    from appliance.checks import (
        accelerator,
        allocator,
        converter,
        decode,
        four_bit,
        state_directory,
    )

    findings = []
    for module in (state_directory, accelerator, converter, allocator, four_bit, decode):
        with output.error_console.status(f"checking {module.NAME} …"):
            findings.append(await _run(module, settings))
    return findings


async def _run(module: ModuleType, settings: Settings) -> Finding:
    """One check; what it cannot even look at has failed it, and the others still run."""
    try:
        found: Finding = await module.check(settings)
    except ApplianceError as exc:
        return Finding(
            check=module.NAME, outcome="failed", found=exc.message, next_step=exc.next_step
        )
    return found
