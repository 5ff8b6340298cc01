"""Programs that stand in for the children: real processes that keep the same contracts without torch."""

from __future__ import annotations

import sys

from appliance.child_records import Programs

PROGRAMS = Programs(
    base_import=(sys.executable, "-m", "tests.fakes.base_import"),
    training=(sys.executable, "-m", "tests.fakes.training"),
    release=(sys.executable, "-m", "tests.fakes.release"),
    # Needs no accelerator and no llama.cpp.
    merge=(sys.executable, "-m", "appliance.release.merge"),
    engine=(sys.executable, "-m", "tests.fakes.engine"),
)
