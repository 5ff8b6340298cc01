"""How much memory an engine takes that serves a given file. Asks the catalogue and the file."""

from __future__ import annotations

import functools
from pathlib import Path

from appliance import gguf_header
from appliance.errors import InvalidInput
from appliance.hardware import stored_base
from appliance.hardware.fit import needs
from appliance.hardware.fit.kv_cache import cache_bytes_of_file
from appliance.hardware.profiles import HardwareProfile
from appliance.store.catalog import SEPARATOR
from appliance.store.store import Store


def adapter_budget_bytes(store: Store, model: str, path: Path) -> int:
    """Bytes for adapters that are attached to a base; a release takes none. Blocks."""
    if store.catalog.find_base(model.partition(SEPARATOR)[0]) is None:
        return 0
    return needs.adapter_budget_bytes(path.stat().st_size)


def serving_bytes(store: Store, profile: HardwareProfile, model: str, path: Path) -> int:
    """Bytes of the device's memory. `model` may be a release that is not in the catalogue yet. Blocks."""
    adapters = adapter_budget_bytes(store, model, path)
    return adapters + _bytes_without_adapters(store, profile, model, path)


def _bytes_without_adapters(store: Store, profile: HardwareProfile, model: str, path: Path) -> int:
    file_bytes = path.stat().st_size
    base = store.catalog.find_base(_base_name(model))
    shape = stored_base.read(store.directory / base.directory / "hf") if base else None
    if base is None or shape is None:
        cache_bytes = _cache_bytes(path, path.stat().st_mtime_ns, profile.n_ctx)
        shelf_bytes = needs.shelf_bytes(cache_bytes, profile.family)
        return file_bytes + cache_bytes + shelf_bytes + needs.engine_bytes(profile.family)
    # The formula by which a job was accepted. The engine cuts the context to what the model was trained with.
    n_ctx = min(profile.n_ctx, base.context_length)
    return needs.serving_bytes(shape, file_bytes, n_ctx, "f16", profile.family)


@functools.lru_cache(maxsize=64)
def _cache_bytes(path: Path, _changed_at: int, n_ctx: int) -> int:
    """Kept: a large vocabulary takes a second to read, and a model may be tried again every other second."""
    try:
        metadata = gguf_header.read(path).metadata
    except InvalidInput:
        # The engine will not load it, and says so.
        return 0
    # An architecture without attention keeps no cache, and has no such values.
    return cache_bytes_of_file(metadata, n_ctx) or 0


def _base_name(model: str) -> str:
    """A fine-tuned model's name tells its base: ft:BASE:ORGANISATION:SUFFIX:ID."""
    stem = model.partition(SEPARATOR)[0]
    return stem.split(":")[1] if stem.startswith("ft:") else stem
