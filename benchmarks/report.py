"""The common shape of a benchmark's result: a table for people, JSON for scripts."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def row(
    case: str, metric: str, unit: str, peer: str, ours: list[float], theirs: list[float]
) -> dict[str, Any]:
    """One comparison: medians of paired rounds, the median of their ratios, and its spread."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "case": case,
        "metric": metric,
        "unit": unit,
        "peer": peer,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "rounds": len(ratios),
    }


def cpu_name() -> str:
    """The CPU as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown CPU"


def emit(benchmark: str, rows: list[dict[str, Any]]) -> None:
    """Print the table and, with --json PATH (or -), write the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", dest="path")
    path = parser.parse_args().path
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    machine = f"{platform.machine()}, {cpu_name()}, Python {platform.python_version()}"
    result = {"benchmark": benchmark, "machine": machine, "commit": commit, "rows": rows}
    text = json.dumps(result, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    case, metric, peer = (
        max(len(text) for text in (name, *(each[name] for each in rows))) + 2
        for name in ("case", "metric", "peer")
    )
    print(
        f"{'case':{case}}{'metric':{metric}}{'peer':{peer}}{'ours':>9}{'theirs':>9}{'ratio':>8}  spread"
    )
    for each in rows:
        print(
            f"{each['case']:{case}}{each['metric']:{metric}}{each['peer']:{peer}}{each['ours']:9.1f}"
            f"{each['theirs']:9.1f}{each['ratio']:8.2f}  {each['ratio_min']:.2f}-{each['ratio_max']:.2f}"
            f"  {each['unit']}"
        )
    if path:
        Path(path).write_text(text, encoding="utf-8")
