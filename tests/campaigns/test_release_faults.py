"""A small part of the campaign, always the same faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import release_faults
from tests.campaigns.release_faults import Fault

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.mark.timeout(600)
def test_a_release_that_is_disturbed_leaves_nothing_half(tmp_path: Path) -> None:
    case = release_faults.prepare(tmp_path)
    # What it makes of a file: reserved, written in place, flushed, renamed.
    assert case.calls["fallocate"] == 2
    assert case.calls["pwrite64"] > 40
    assert case.calls["rename"] == 4
    faults = {
        Fault("pwrite64", 3, "signal=KILL"): "died",
        Fault("fallocate", 2, "error=ENOSPC"): "out_of_disk",
        # The first of two files, finished, and the second one's last step.
        Fault("rename", 2, "error=ENOSPC"): "out_of_disk",
        # The result itself.
        Fault("rename", 4, "error=ENOSPC"): "out_of_disk",
    }
    for number, (fault, expected) in enumerate(faults.items()):
        assert release_faults.check(case, fault, tmp_path / f"case-{number}") == expected
