"""What a model's name means: a base or a release, and which of its files.

`NAME` is the first file of the release; `NAME@Q8_0` is the one in that quantization. `NAME@adapter` is the
base's first file with the release's adapter attached: so many fine-tuned models share the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from appliance.errors import NotFound
from appliance.records import BaseModel, Release
from appliance.store.catalog import SEPARATOR

ADAPTER = "adapter"


class Target(NamedTuple):
    """What answers to a name. `engine_name` is that of the model in `gguf`."""

    engine_name: str
    gguf: Path
    adapter: Path | None = None


def target(state_dir: Path, get: Callable[[str], BaseModel | Release], name: str) -> Target:
    """What a name means; raises NotFound for an unknown name, quantization or adapter."""
    stem, separator, variant = name.partition(SEPARATOR)
    model = get(stem)
    if not separator:
        return Target(name, state_dir / model.files[0].path)
    for file in model.files:
        if file.quantization == variant:
            return Target(name, state_dir / file.path)
    variants = [file.quantization.value for file in model.files]
    if isinstance(model, Release) and model.adapter_file is not None:
        if variant == ADAPTER:
            base = get(model.base_model)
            gguf = state_dir / base.files[0].path
            return Target(base.name, gguf, state_dir / model.adapter_file.path)
        variants.append(ADAPTER)
    raise NotFound(
        "model_not_found",
        f"{stem!r} should be asked for as one of {', '.join(variants)}; found {variant!r}",
        param="model",
    )
