"""The LoRA adapters that a model has in memory, within a budget of bytes, and the one that is attached.

llama.cpp attaches adapters to a whole context: all sequences of a decode call share them. What a sequence
holds was computed under one adapter and is worth nothing under another. Knows nothing of requests.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from appliance.errors import ChildFailed, InvalidInput

# The strength with which an adapter was trained; its file holds alpha, and llama.cpp divides by the rank.
SCALE = 1.0


class _Loaded(NamedTuple):
    handle: Any
    bytes: int


class Adapters:
    """Adapters are named by the paths of their GGUF files, whose content never changes."""

    def __init__(self, model: Any, context: Any, budget_bytes: int) -> None:
        self._model = model
        self._context = context
        self._budget_bytes = budget_bytes
        # In the order of their last use.
        self._loaded: dict[str, _Loaded] = {}
        self._attached: str | None = None

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, path: str, in_use: Collection[str | None]) -> bool:
        """Have an adapter in memory; False if there is no room for it beside those `in_use`.

        Others are unloaded for it, the one unused for longest first. Raises InvalidInput for one that is
        larger than the budget, ChildFailed for one that cannot be read or is none of this model.
        """
        if path in self._loaded:
            self._loaded[path] = self._loaded.pop(path)
            return True
        size_bytes = _size_bytes(path)
        if size_bytes > self._budget_bytes:
            raise InvalidInput(
                "adapter_too_large",
                f"{self._budget_bytes} bytes are set aside for adapters; this one has {size_bytes}",
                param="model",
                next_step="ask for the merged model: the same name without @adapter",
            )
        for other in [each for each in self._loaded if each not in in_use]:
            if self._room_bytes() >= size_bytes:
                break
            self._unload(other)
        if self._room_bytes() < size_bytes:
            return False
        self._loaded[path] = _Loaded(self._read(path), size_bytes)
        return True

    def attach(self, path: str | None) -> None:
        """Let the next decode calls run with this adapter, which must have been loaded, or with none."""
        if path == self._attached:
            return
        chosen = [] if path is None else [self._loaded[path].handle]
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[SCALE] * len(chosen))
        status = llama_cpp.llama_set_adapters_lora(self._context, adapters, len(chosen), scales)
        if status != 0:
            raise ChildFailed(
                "adapter_refused", f"llama.cpp should attach an adapter; it returned {status}"
            )
        self._attached = path

    def _room_bytes(self) -> int:
        return self._budget_bytes - sum(each.bytes for each in self._loaded.values())

    def _unload(self, path: str) -> None:
        if path == self._attached:
            self.attach(None)
        llama_cpp.llama_adapter_lora_free(self._loaded.pop(path).handle)

    def _read(self, path: str) -> Any:
        adapter = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ChildFailed(
                "unloadable_adapter",
                f"llama.cpp should load {Path(path).name} for this model; it refuses it",
                next_step="see the engine's last lines in the log",
            )
        return adapter


def _size_bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as exc:
        raise ChildFailed(
            "unloadable_adapter", f"{Path(path).name} should be readable, but: {exc.strerror}"
        ) from exc
