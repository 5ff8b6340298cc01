"""Python imports this by itself when a test puts the directory on PYTHONPATH: the guard, in a real child."""

from __future__ import annotations

from tests import network_guard

network_guard.install()
