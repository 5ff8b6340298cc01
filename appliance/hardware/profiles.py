"""Hardware profiles: the only reader of `firmware_profiles/`. Facts and defaults, no behaviour.

A profile takes what it does not say itself from the one that it `inherits`. The operator's own file changes
single values of whichever profile is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance import fields
from appliance.errors import ConfigurationError
from appliance.hardware.device import Family
from appliance.records import LeasePolicy, Quantization, Technique
from appliance.settings import OVERRIDE_FILE

Positive = Annotated[int, Meta(ge=1)]
# More than any device has.
Gibibytes = Annotated[float, Meta(ge=0, le=1 << 20)]
Billions = Annotated[float, Meta(gt=0)]
# Which devices a profile names is its own alone.
OWN = ("gpu_names", "modules")
# What a profile is; the operator's file must leave it alone.
IDENTITY = ("name", "family", "gpu_names", "modules", "memory_gib")


class BaseSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of base models, in billions of parameters: what suits, and the most worth its time."""

    default_billions: Billions
    max_billions: Billions


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults and limits of one device or class of devices."""

    # --- which device this is for ---
    name: str
    description: str
    family: Family
    # Least memory that such a device shows; devices that no profile names go by it alone.
    memory_gib: Gibibytes
    gpu_names: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    # --- memory ---
    os_reserve_gib: Gibibytes
    # --- training ---
    technique: Technique
    base_sizes: dict[Technique, BaseSizes]
    max_length: Positive
    per_device_train_batch_size: Positive
    # --- releases and serving ---
    quantizations: Annotated[tuple[Quantization, ...], Meta(min_length=1)]
    n_ctx: Positive
    slots: Annotated[int, Meta(ge=1, le=128)]
    kv_type: Literal["f16", "q8_0"]
    max_loaded_models: Positive
    # --- sharing, heat ---
    lease_policy: LeasePolicy
    thermal_limit_celsius: Annotated[int, Meta(ge=40, le=110)] | None = None
    thermal_source: str | None = None


def load_all(directory: Path) -> dict[str, HardwareProfile]:
    """Every profile in `directory`, by name.

    Raises ConfigurationError that names all faults of all files at once.
    """
    faults: list[str] = []
    sources = {path.stem: _source(path, faults) for path in sorted(directory.glob("*.toml"))}
    found = {}
    for name, source in sources.items():
        if "name" in source:
            faults.append(f"{name}.toml: name: a profile is called as its file is")
        values = {**_inherited(name, sources, faults), "name": name}
        if (profile := _profile(values, f"{name}.toml", faults)) is not None:
            found[name] = profile
    if faults or not found:
        raise ConfigurationError(
            "invalid_profile",
            f"{directory} should hold hardware profiles; "
            + ("; ".join(faults) or "there is none in it"),
            next_step="correct them, or give another --profile-dir; docs/profiles.md describes them",
        )
    return found


def override(profile: HardwareProfile, path: Path) -> HardwareProfile:
    """`profile` with the operator's values from `path`; only the default file need not be there."""
    if path == OVERRIDE_FILE and not path.exists():
        return profile
    faults: list[str] = []
    values = _source(path, faults)
    faults += [f"{name}: is the profile's own" for name in IDENTITY if name in values]
    whole = _merge(values, msgspec.to_builtins(profile))
    accepted, wrong = fields.convert(
        {name: whole[name] for name in values}, HardwareProfile, what="value of a profile"
    )
    if faults or wrong:
        raise ConfigurationError(
            "invalid_profile",
            f"{path} should change values of a hardware profile, but: " + "; ".join(faults + wrong),
            next_step="correct it; docs/profiles.md describes the values",
        )
    return msgspec.structs.replace(profile, **accepted)


def _source(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return fields.read_toml(path)
    except (OSError, ValueError) as exc:
        faults.append(f"{path.name}: {exc}")
        return {}


def _inherited(
    name: str, sources: Mapping[str, dict[str, Any]], faults: list[str]
) -> dict[str, Any]:
    """The values of a profile and of all that it inherits from, its own first; tables are merged."""
    merged = {key: sources[name][key] for key in OWN if key in sources[name]}
    line = [name]
    while True:
        source = sources[line[-1]]
        inheritable = {key: source[key] for key in source if key not in (*OWN, "inherits")}
        merged = _merge(merged, inheritable)
        parent = source.get("inherits")
        if parent is None:
            return merged
        if not isinstance(parent, str) or parent not in sources or parent in line:
            problem = "inherits itself" if parent in line else "does not exist"
            faults.append(f"{line[-1]}.toml: inherits: {parent!r} {problem}")
            return merged
        line.append(parent)


def _merge(own: dict[str, Any], inherited: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merge(own[key], inherited[key])
        for key in own.keys() & inherited.keys()
        if isinstance(own[key], dict) and isinstance(inherited[key], dict)
    }
    return inherited | own | both


def _profile(values: dict[str, Any], source: str, faults: list[str]) -> HardwareProfile | None:
    accepted, wrong = fields.convert(values, HardwareProfile, what="value of a profile")
    faults += [f"{source}: {fault}" for fault in wrong]
    missing = [
        field.name
        for field in msgspec.structs.fields(HardwareProfile)
        if field.required and field.name not in values
    ]
    faults += [f"{source}: {name} is missing" for name in missing]
    return None if wrong or missing else HardwareProfile(**accepted)
