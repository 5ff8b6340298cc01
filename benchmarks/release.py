"""From adapter to GGUF: the release child against the usual way, on the starter model.

The base is imported and released first, as the daemon does it once; that is not measured. Each round makes
the same Q4_K_M file both ways, compares them tensor by tensor, byte by byte, and fails if any differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from release_child import (
    MIB,
    Watch,
    base_spec,
    random_adapter,
    run,
    run_child,
    trained_spec,
)
from report import emit, row

from appliance import gguf_header
from appliance.settings import STARTER, Settings

QUANTIZATION = "Q4_K_M"
R = 16
END_OF_TURN = 2  # the starter's <|im_end|>
ROUNDS = 5
PEER = "merge, save, convert, quantize"


def main() -> None:
    """Print times, memory and disk of both ways."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        base, base_file = _base(work)
        adapter = random_adapter(base, work / "adapter", R)
        spec = trained_spec(base, base_file, adapter, QUANTIZATION, END_OF_TURN)
        ours, theirs = [], []
        for number in range(ROUNDS):
            ours.append(_ours(spec, work / f"ours-{number}"))
            theirs.append(_theirs(base, adapter, work / f"theirs-{number}"))
            _compare(ours[-1]["file"], theirs[-1]["file"])
    emit("release", [_row(ours, theirs, *measure) for measure in MEASURES])


# What it is, its unit, and the key of ours and of theirs.
MEASURES = (
    ("time until the file is written", "s", "seconds", "seconds"),
    ("time with adapter alone and checks", "s", "seconds_in_all", "seconds"),
    ("anonymous memory, merge and quantize", "MiB", "anonymous", "anonymous"),
    ("written to disk", "MiB", "disk", "disk"),
)


def _row(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], metric: str, unit: str, *keys: str
) -> dict[str, Any]:
    our_key, their_key = keys
    return row(
        f"SmolLM2-135M, r={R}, {QUANTIZATION}",
        metric,
        unit,
        PEER,
        [each[our_key] for each in ours],
        [each[their_key] for each in theirs],
    )


def _base(work: Path) -> tuple[Path, Path]:
    source = next(STARTER.glob("*.gguf"))
    spec = {"name": "base", "source": str(source), "licence": "", "origin": "benchmark"}
    run_child("appliance.basemodels", work / "import", spec)
    hf = work / "import" / "hf"
    run_child("appliance.release", work / "base", base_spec(hf, QUANTIZATION))
    return hf, work / "base" / f"model-{QUANTIZATION}.gguf"


def _ours(spec: dict[str, Any], directory: Path) -> dict[str, Any]:
    watch = Watch(directory)
    seconds = run_child("appliance.release", directory, spec, watch)
    return {
        "file": directory / f"model-{QUANTIZATION}.gguf",
        "seconds": watch.seconds_until_merged,
        "seconds_in_all": seconds,
        "anonymous": watch.anonymous_until_merged / MIB,
        "disk": _bytes_below(directory) / MIB,
    }


def _theirs(base: Path, adapter: Path, directory: Path) -> dict[str, Any]:
    directory.mkdir()
    script = Path(__file__).with_name("reference_release.py")
    arguments = (base, adapter, Settings().converter_dir, directory, QUANTIZATION)
    watch = Watch(directory)
    seconds = run([sys.executable, str(script), *map(str, arguments)], watch)
    return {
        "file": directory / f"model-{QUANTIZATION}.gguf",
        "seconds": seconds,
        "anonymous": watch.anonymous / MIB,
        "disk": _bytes_below(directory) / MIB,
    }


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.*") if path.is_file())


def _compare(ours: Path, theirs: Path) -> None:
    """Same names, shapes, types and places; then the same bytes in all of them."""
    left, right = gguf_header.read(ours), gguf_header.read(theirs)
    if left.tensors != right.tensors:
        sys.exit("the two ways give different tensors")
    with ours.open("rb") as left_file, theirs.open("rb") as right_file:
        left_file.seek(left.data_offset)
        right_file.seek(right.data_offset)
        if left_file.read() != right_file.read():
            sys.exit("the two ways give different bytes")
    print(f"{len(left.tensors)} tensors are equal, byte by byte", flush=True)


if __name__ == "__main__":
    main()
