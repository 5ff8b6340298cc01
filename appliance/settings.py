"""Every knob, declared once: name, type, default, help. Everything else derives from this.

A value comes from, in rising order: its default, the TOML file, an `APPLIANCE_*` environment variable, a
command-line flag. All faults are reported together. Reads nothing at import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance import fields
from appliance.errors import ConfigurationError

ENVIRONMENT_PREFIX = "APPLIANCE_"
CONFIG_FILE_VARIABLE = "APPLIANCE_CONFIG"
# Variables of ours that are none of the settings.
NO_SETTINGS = (CONFIG_FILE_VARIABLE, "APPLIANCE_DEATH_FD", "APPLIANCE_TEST_")
DEFAULT_CONFIG_FILE = Path("/etc/appliance/appliance.toml")
# Where the operator may change single values of the hardware profile.
OVERRIDE_FILE = Path("/etc/appliance/profile.toml")

# Files beside the package in a checkout, and where the installer puts them otherwise.
CHECKOUT = Path(__file__).resolve().parent.parent
INSTALLED = Path(sys.prefix, "share/appliance")
# The starter base model with its licence and provenance, laid down by the installer.
STARTER = INSTALLED / "starter"

MIB = 1 << 20


def _help(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The daemon's and the CLI's configuration."""

    state_dir: Annotated[Path, _help("Directory that holds all state.")] = Path(
        "/var/lib/appliance"
    )
    host: Annotated[str, _help("Address that the daemon listens on.")] = "127.0.0.1"
    port: Annotated[int, _help("TCP port that the daemon listens on.", ge=1, le=65535)] = 8484
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], _help("Least severity that is logged.")
    ] = "INFO"
    profile: Annotated[
        str, _help('Hardware profile by name, or "auto" to choose by what the box has.')
    ] = "auto"
    profile_dir: Annotated[Path, _help("Directory of the hardware profiles.")] = (
        CHECKOUT / "firmware_profiles"
        if (CHECKOUT / "firmware_profiles").is_dir()
        else INSTALLED / "firmware_profiles"
    )
    profile_override_file: Annotated[
        Path, _help("TOML file with values that replace those of the hardware profile.")
    ] = OVERRIDE_FILE
    converter_dir: Annotated[
        Path, _help("llama.cpp tree with convert_hf_to_gguf.py, laid down by the installer.")
    ] = INSTALLED / "llama.cpp"
    threads: Annotated[
        int, _help("CPU threads for training, release and serving; 0 takes all.", ge=0, le=1024)
    ] = 0
    max_upload_bytes: Annotated[int, _help("Largest file that can be uploaded.", ge=1)] = 512 * MIB
    storage_quota_bytes: Annotated[
        int, _help("Most bytes that uploaded files and base models may take; 0 is no limit.", ge=0)
    ] = 0
    max_request_bytes: Annotated[int, _help("Largest body of any other request.", ge=1)] = 2 * MIB
    body_timeout_seconds: Annotated[
        float, _help("Longest pause of a client in the middle of sending or reading a body.", gt=0)
    ] = 30.0
    checkpoint_seconds: Annotated[
        float, _help("Longest time between two training checkpoints.", ge=0)
    ] = 30.0
    stall_timeout_seconds: Annotated[
        float, _help("A training or release that shows no progress for so long is stopped.", gt=0)
    ] = 900.0
    engine_stall_seconds: Annotated[
        float,
        _help(
            "An engine that shows no progress in loading or answering for so long is ended.", gt=0
        ),
    ] = 120.0
    engine_idle_seconds: Annotated[
        float, _help("A model that answered nothing for so long is unloaded.", gt=0)
    ] = 1800.0
    max_waiting_requests: Annotated[
        int,
        _help(
            "Answers that may be waited for at once of one model (a request with n = 16 asks for 16); "
            "who wants more is told to come back.",
            ge=1,
        ),
    ] = 64

    drain_seconds: Annotated[
        float,
        _help(
            "At a stop, answers under way may take so long to be finished; then they are ended.",
            ge=0,
            le=30,
        ),
    ] = 10.0

    @property
    def thread_count(self) -> int:
        """`threads`, or the number of CPUs this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def url(self) -> str:
        """Where the API is reached from this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def admin_key_file(self) -> Path:
        """The 0600 file with the admin's API key, written at the first start."""
        return self.state_dir / "admin.key"


def load(
    flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read the configuration; `flags` of value None count as not given.

    Raises ConfigurationError naming every unknown or ill-typed setting at once.
    """
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    values: dict[str, Any] = {**_from_file(environment), **_from_environment(environment), **given}
    accepted, faults = fields.convert(
        values, Settings, what="setting", strict=False, dec_hook=_decode_path
    )
    if faults:
        raise ConfigurationError(
            "invalid_settings",
            "the settings have faults: " + "; ".join(faults),
            next_step="see `appliance serve --help` and docs/settings.md",
        )
    return _absolute(Settings(**accepted))


def _decode_path(kind: type, value: Any) -> Any:
    # An empty one would mean the current directory, which nobody who leaves a variable empty wants.
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    raise msgspec.ValidationError(f"Expected a path, got `{type(value).__name__}`")


def _absolute(settings: Settings) -> Settings:
    changes = {
        name: path.expanduser().absolute()
        for name in settings.__struct_fields__
        if isinstance(path := getattr(settings, name), Path)
    }
    return msgspec.structs.replace(settings, **changes)


def _from_file(environment: Mapping[str, str]) -> dict[str, Any]:
    named = environment.get(CONFIG_FILE_VARIABLE)
    path = Path(named) if named else DEFAULT_CONFIG_FILE
    try:
        return fields.read_toml(path)
    except FileNotFoundError:
        if named:
            raise ConfigurationError(
                "no_config_file", f"{CONFIG_FILE_VARIABLE} names {path}, which does not exist"
            ) from None
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            "unreadable_config_file", f"{path} should be a TOML file, but: {exc}"
        ) from exc


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        variable.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for variable, value in environment.items()
        if variable.startswith(ENVIRONMENT_PREFIX) and not variable.startswith(NO_SETTINGS)
    }
