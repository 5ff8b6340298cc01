"""Who may look at the device may not always look at the state directory."""

from __future__ import annotations

from appliance.cli import profile
from appliance.hardware import selection
from appliance.hardware.fit.machine import machine_of
from appliance.hardware.lease import DIRECTORY, Ledger


def rows(settings) -> list[tuple[str, str]]:
    selected = selection.select(settings)
    return list(profile._memory(settings, machine_of(selected.device, selected.profile)))


def test_without_a_daemon_nothing_is_held_and_nothing_is_made(settings):
    assert [name for name, _ in rows(settings)] == ["for models"]
    assert not settings.state_dir.exists()


def test_what_is_held_is_shown(settings):
    settings.state_dir.mkdir()
    with Ledger(settings.state_dir / DIRECTORY, 1 << 40).grant("m", "serving", 3 << 29):
        assert rows(settings)[1:] == [("held, serving", "1.50 GiB by m")]


def test_state_that_this_user_may_not_read_costs_one_line(settings, monkeypatch):
    def refused(_ledger):
        raise PermissionError

    settings.state_dir.mkdir()
    Ledger(settings.state_dir / DIRECTORY, 1)
    monkeypatch.setattr(Ledger, "holdings", refused)
    ((_, _), (name, told)) = rows(settings)
    assert name == "held"
    assert "not readable" in told
