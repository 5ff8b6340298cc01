"""The service manager hears of it, whichever kind of socket it listens on."""

from __future__ import annotations

import socket

import pytest

from appliance import systemd


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_state_reaches_the_service_manager(monkeypatch, tmp_path, kind):
    address = str(tmp_path / "notify") if kind == "path" else f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")
        assert manager.recv(64) == b"READY=1"


def test_without_a_service_manager_nobody_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
