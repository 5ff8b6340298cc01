"""What an imported base model's own configuration says of its memory. Reads one small file, judges
nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.errors import UNDECODABLE
from appliance.hardware.fit import shapes
from appliance.hardware.fit.shapes import ModelShape

# A configuration has a few kilobytes.
_MOST_BYTES = 1 << 20


def read(directory: Path) -> ModelShape | None:
    """Shape of the model in a Hugging Face directory; None if its memory cannot be told."""
    try:
        with (directory / "config.json").open("rb") as file:
            config = msgspec.json.decode(file.read(_MOST_BYTES), type=dict)
    except (OSError, *UNDECODABLE):
        # Missing or damaged files are found, and named, by the child that uses them.
        return None
    return shapes.of_config(config)
