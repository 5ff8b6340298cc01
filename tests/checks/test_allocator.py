"""An allocator that is missing fails the check before it fails a training."""

from __future__ import annotations

import asyncio

import pytest

from appliance.checks import allocator as check
from appliance.training import allocator


@pytest.mark.parametrize(("installed", "outcome"), [(True, "ok"), (False, "failed")])
def test_outcome_follows_from_the_library(settings, monkeypatch, installed, outcome):
    monkeypatch.setattr(allocator, "is_installed", lambda: installed)
    finding = asyncio.run(check.check(settings))
    assert finding.outcome == outcome
    assert allocator.LIBRARY in finding.found
    assert (finding.next_step is None) == installed
