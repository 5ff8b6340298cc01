"""However a demo ends, it leaves a daemon behind only where it says so."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.cli import demo
from appliance.settings import CHECKOUT, Settings

EXAMPLE = CHECKOUT / "examples" / "factory_faults"
run_demo = inspect.unwrap(demo.demo)


def press_key() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> list[Path]:
    """The state directories of the daemons that were stopped, in a demo that is interrupted in training."""
    stopped: list[Path] = []

    monkeypatch.setattr(demo, "_ensure_starter", lambda *_: None)
    monkeypatch.setattr(demo, "_ensure_daemon", lambda _: None)
    monkeypatch.setattr(demo, "_run", lambda *_: interrupt())
    monkeypatch.setattr(demo, "stop_daemon", lambda settings: stopped.append(settings.state_dir))
    return stopped


@pytest.mark.parametrize("interrupt", [press_key, terminate])
@pytest.mark.parametrize(("exit_", "expected"), [(True, 1), (False, 0)])
def test_interrupted_demo_stops_its_daemon_or_says_that_it_goes_on(
    settings: Settings,
    stopped: list[Path],
    capsys: pytest.CaptureFixture[str],
    exit_: bool,
    expected: int,
) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_demo(settings, EXAMPLE, Path("no starter"), exit_, None)
    assert stopped == [settings.state_dir] * expected
    told = "the daemon goes on" in capsys.readouterr().err
    assert told != exit_
