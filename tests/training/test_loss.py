"""Leaving out positions without labels changes the work, not the loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import process

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_loss_and_gradient_are_those_of_trl(
    spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec(lora_dropout=0.0)))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.training.loss_probe",
            str(tmp_path / "out"),
            str(tmp_path / "spec.json"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["ours"]) == 2
    # bfloat16 has three digits.
    tolerance = 1e-4 if found["float32"] else 2e-2
    for ours, theirs in zip(found["ours"], found["theirs"], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
        assert all(number > 0 for number in ours)
    assert found["ours"][0] != pytest.approx(found["ours"][1], rel=tolerance)
    assert found["adapter_is_kept_in_the_chosen_format"]
