"""The field's usual pipeline, and comparing with what it makes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance import gguf_header
from appliance.settings import CHECKOUT


def reference_release(
    base: Path, adapter: Path, converter: Path, directory: Path, quantizations: Sequence[str]
) -> Path:
    """merge_and_unload, save, convert, quantize; the directory with a `model-TYPE.gguf` for each."""
    directory.mkdir()
    script = CHECKOUT / "benchmarks" / "reference_release.py"
    arguments = [str(each) for each in (base, adapter, converter, directory)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments, *quantizations],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


def assert_same_tensors(ours: Path, theirs: Path) -> int:
    """Names, shapes, types, places and bytes; how many tensors there are."""
    left, right = gguf_header.read(ours), gguf_header.read(theirs)
    assert left.tensors == right.tensors
    assert ours.read_bytes()[left.data_offset :] == theirs.read_bytes()[right.data_offset :]
    return len(left.tensors)
