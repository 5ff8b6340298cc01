"""Open base models that can be brought in: facts from a file; nothing is fetched.

The only reader of `firmware_profiles/catalogue/`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import fields
from appliance.errors import UNDECODABLE, ConfigurationError
from appliance.hardware.fit.shapes import ModelShape

CATALOGUE = Path("catalogue", "base_models.toml")


class CataloguedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One open model: `chat` if it was trained to converse, with a chat template."""

    repository: str
    licence: str
    languages: str
    chat: bool
    shape: ModelShape


def load(profile_dir: Path) -> dict[str, CataloguedModel]:
    """The catalogue beside the profiles, smallest model first."""
    path = profile_dir / CATALOGUE
    try:
        models = msgspec.convert(fields.read_toml(path), dict[str, CataloguedModel])
    except (OSError, ValueError, *UNDECODABLE) as exc:
        raise ConfigurationError(
            "invalid_catalogue",
            f"{path} should describe base models, but: {exc}",
            next_step="correct it, or take the file that came with the appliance",
        ) from exc
    return dict(sorted(models.items(), key=lambda item: item[1].shape.parameters))
