"""What every test gets: a clean environment, no network, and, if it asks, a daemon with fake children."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import settings as settings_module
from appliance.settings import INSTALLED, Settings
from tests import network_guard
from tests.daemon_process import DaemonProcess, add_base
from tests.hardware import replay

# The children's tests need what the installer laid down; elsewhere these variables name it.
REAL_PARTS = {
    "APPLIANCE_TEST_CONVERTER": INSTALLED / "llama.cpp",
    "APPLIANCE_TEST_STARTER_GGUF": INSTALLED / "starter" / "SmolLM2-135M-Instruct.Q4_1.gguf",
}

network_guard.install()
for _variable, _path in REAL_PARTS.items():
    if _path.exists():
        os.environ.setdefault(_variable, str(_path))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test."""
    for name in os.environ:
        if name.startswith("APPLIANCE_") and name not in REAL_PARTS:
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings_module, "DEFAULT_CONFIG_FILE", tmp_path / "no-such.toml")


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    yield
    attempts = network_guard.take_attempts()
    assert not attempts, f"reached for the network: {attempts}"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Where a daemon or a store of this test keeps its state; not there yet."""
    return tmp_path / "state"


@pytest.fixture
def settings(state_dir: Path) -> Settings:
    return Settings(state_dir=state_dir, profile_override_file=Path(os.devnull))


@pytest.fixture(autouse=True)
def _sees_all_gpus() -> Iterator[None]:
    """What runs in this process may have hidden them from its children."""
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)


@pytest.fixture
def daemon_with(state_dir: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """`daemon_with(**settings)`: a running daemon with these settings and one base model."""
    started: list[DaemonProcess] = []

    def start(**given: object) -> DaemonProcess:
        add_base(state_dir)
        started.append(DaemonProcess(state_dir, **given))
        return started[-1].start()

    yield start
    for each in started:
        each.close()


@pytest.fixture
def set_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`set_gpus(gpu, …)`: what NVML says from now on, to a daemon that runs already, too."""
    path = tmp_path / "nvml"
    monkeypatch.setenv("FAKE_NVML", str(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(replay.library_directory()))

    def answer(*gpus: replay.Recorded) -> None:
        recorded = {"nvml": {"driver": "1", "cuda": 13000, "gpu": gpus}}
        # In one step: it is read at every question.
        path.with_suffix(".new").write_text(replay.answers(recorded), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    return answer


@pytest.fixture
def daemon(daemon_with: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon of this test's own, which it may kill."""
    return daemon_with()


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon for all tests that only ask; they leave it alive."""
    state_dir = tmp_path_factory.mktemp("shared") / "state"
    add_base(state_dir)
    running = DaemonProcess(state_dir, max_upload_bytes=1 << 20, max_request_bytes=1 << 18)
    try:
        yield running.start()
    finally:
        running.close()
