"""Which open base models are worth carrying in for a device. Facts from a file; nothing is fetched.

The only reader of `firmware_profiles/catalogue/`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from appliance.errors import UNDECODABLE, ConfigurationError
from appliance.hardware.fit import gguf_size
from appliance.hardware.fit.shapes import ModelShape
from appliance.hardware.profiles import HardwareProfile
from appliance.records import Quantization, Technique

CATALOGUE = Path("catalogue", "base_models.toml")


class CataloguedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One open model: `chat` if it was trained to converse, with a chat template."""

    repository: str
    licence: str
    languages: str
    chat: bool
    shape: ModelShape


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the profile lets in. `file_bytes` is the predicted size as `quantization`."""

    name: str
    repository: str
    licence: str
    languages: str
    chat: bool
    parameters: int
    quantization: Quantization
    file_bytes: int
    techniques: tuple[Technique, ...]
    reason: str


def load(profile_dir: Path) -> dict[str, CataloguedModel]:
    """The catalogue beside the profiles, smallest model first."""
    path = profile_dir / CATALOGUE
    try:
        models = msgspec.convert(
            tomllib.loads(path.read_text(encoding="utf-8")), dict[str, CataloguedModel]
        )
    except (OSError, tomllib.TOMLDecodeError, *UNDECODABLE) as exc:
        raise ConfigurationError("invalid_catalogue", f"{path}: {exc}") from exc
    return dict(sorted(models.items(), key=lambda item: item[1].shape.parameters))


def recommend(profile: HardwareProfile, models: dict[str, CataloguedModel]) -> list[Recommendation]:
    """What the profile lets in with any technique, largest first, each with its reason."""
    found = [
        _recommendation(name, model, profile)
        for name, model in models.items()
        if _techniques(model, profile)
    ]
    return found[::-1]


def _recommendation(name: str, model: CataloguedModel, profile: HardwareProfile) -> Recommendation:
    quantization = profile.quantizations[0]
    return Recommendation(
        name=name,
        repository=model.repository,
        licence=model.licence,
        languages=model.languages,
        chat=model.chat,
        parameters=model.shape.parameters,
        quantization=quantization,
        file_bytes=gguf_size.file_bytes(model.shape, quantization),
        techniques=_techniques(model, profile),
        reason=_reason(model, profile),
    )


def _techniques(model: CataloguedModel, profile: HardwareProfile) -> tuple[Technique, ...]:
    return tuple(
        technique
        for technique, sizes in profile.base_sizes.items()
        if _billions(model) <= sizes.max_billions
    )


def _reason(model: CataloguedModel, profile: HardwareProfile) -> str:
    sizes = profile.base_sizes[profile.technique]
    size = f"{_billions(model):.2g} billion parameters"
    if _billions(model) <= sizes.default_billions:
        return f"{size}, within the {sizes.default_billions:g} that suit {profile.technique} here"
    if _billions(model) <= sizes.max_billions:
        return (
            f"{size}, more than the {sizes.default_billions:g} that suit {profile.technique} here: "
            "short rows, and slow"
        )
    return f"{size}, too many for {profile.technique} here"


def _billions(model: CataloguedModel) -> float:
    return model.shape.parameters / 1e9
