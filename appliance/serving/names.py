"""What a model's name means: a base or a release, and which of its files.

`NAME` is the first file of the release; `NAME@Q8_0` is the one in that quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.errors import NotFound
from appliance.records import BaseModel, Release

SEPARATOR = "@"


def gguf_path(state_dir: Path, get: Callable[[str], BaseModel | Release], name: str) -> Path:
    """The GGUF file behind a name; raises NotFound for an unknown name or quantization."""
    stem, separator, quantization = name.partition(SEPARATOR)
    model = get(stem)
    if not separator:
        return state_dir / model.files[0].path
    for file in model.files:
        if file.quantization == quantization:
            return state_dir / file.path
    available = ", ".join(file.quantization.value for file in model.files)
    raise NotFound(
        "model_not_found",
        f"{stem!r} should be asked for in one of {available}; found {quantization!r}",
        param="model",
    )
