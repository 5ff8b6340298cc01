"""How a base model is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import process

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_gradients_survive_a_validation_pass(tiny: Path) -> None:
    # On a CPU without AVX512-BF16 nothing is ever repacked: there the count of layers that are allowed
    # to repack is what fails without the cure.
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.gradient_probe", str(tiny)],
        capture_output=True,
        text=True,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    probe = json.loads(done.stdout.splitlines()[-1])
    assert probe["four_bit_layers"] == 14
    assert probe["repacking_allowed"] == 0
    assert probe["gradient"] > 0
    assert probe["equal"]
    assert probe["lm_head"] == "Linear"
    assert probe["dtype_is_chosen"]
    assert (probe["nested"], probe["quant_type"]) == (True, ["nf4"])
