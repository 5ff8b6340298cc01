"""llama.cpp's own converter of Hugging Face models, as it lies beside the runtime: run whole, or made to hand
over its tensors one by one.

Which tensors an architecture has, how they are called, permuted, split and fused is upstream's knowledge and
stays there. The converter brings its own `gguf`, newer than the one from PyPI: in a process that has imported
the latter, nothing here works.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import logging
import math
import runpy
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from appliance import durable, versions
from appliance.errors import ChildFailed, ConfigurationError
from appliance.release.adapter import LoraPair

MODEL_SCRIPT = "convert_hf_to_gguf.py"
ADAPTER_SCRIPT = "convert_lora_to_gguf.py"
# Receives a tensor's name in the GGUF and its values, [..., columns].
OnTensor = Callable[[str, np.ndarray], None]


def run(script: Path, arguments: Sequence[str]) -> None:
    """Run one of the converter's scripts in this process; raises ChildFailed (`conversion_failed`)."""
    _require(script)
    arguments_before, sys.argv = sys.argv, [str(script), *arguments]
    level_before = logging.root.level
    try:
        with _failure_as_error(), _importable(script.parent):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exc:
        if exc.code:
            raise _failed(f"it ended with {exc.code}") from exc
    finally:
        sys.argv = arguments_before
        # It turns on a line for every tensor.
        logging.root.setLevel(level_before)


def write_configuration(directory: Path, base: Path, destination: Path) -> None:
    """Write durably what the converter makes of the base's configuration, for `configured`, unless it cannot
    be JSON. Raises ChildFailed (`conversion_failed`)."""
    with _failure_as_error():
        hparams = _conversion(directory).ModelBase.load_hparams(base, False)
        with contextlib.suppress(TypeError):
            known = {"versions": versions.installed(), "hparams": hparams}
            durable.write_durably(destination, json.dumps(known).encode())


@contextlib.contextmanager
def configured(directory: Path, configuration: Path) -> Iterator[None]:
    """Let the converter take the base's configuration from what `write_configuration` wrote, where that is,
    whole, and by the same software.

    To read it with transformers imports a good part of that library and of torch, which takes longer than a
    small model's release does otherwise.
    """
    hparams = _read_configuration(configuration)
    if hparams is None:
        yield
        return
    _require(directory / MODEL_SCRIPT)
    model_base = _conversion(directory).ModelBase
    before = model_base.load_hparams

    def known(dir_model: Path, is_mistral_format: bool) -> Any:
        return copy.deepcopy(hparams)

    model_base.load_hparams = staticmethod(known)
    try:
        yield
    finally:
        model_base.load_hparams = staticmethod(before)


def _read_configuration(path: Path) -> dict[str, Any] | None:
    """None where it has to be made anew."""
    try:
        known = json.loads(path.read_bytes())
        hparams = known["hparams"] if known["versions"] == versions.installed() else None
    except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return hparams if isinstance(hparams, dict) else None


def stream(
    directory: Path,
    base: Path,
    pairs: Mapping[str, LoraPair],
    on_tensor: OnTensor,
    *,
    only: Collection[str] | None = None,
) -> None:
    """Hand every tensor of the GGUF of `base`, or `only` those, to `on_tensor` in float32, with `pairs`
    merged into it.

    One tensor is held at a time, beside what is mapped from the base's files. Raises ChildFailed
    (`release_check_failed`) unless each pair found its weight, of its shape, and was merged once.
    """
    _require(directory / MODEL_SCRIPT)
    conversion = _conversion(directory)
    with torch.inference_mode(), _failure_as_error():
        model = _model(conversion, base)
        merged: list[str] = []
        known = _under_upstreams_names(model, pairs)
        for name, pair in known.items():
            weight = model.model_tensors.get(name)
            if weight is None:
                raise _unmergeable(f"{name} should be a weight of the base model; it has none")
            model.model_tensors[name] = functools.partial(
                _merging,
                conversion.LazyTorchTensor,
                weight,
                pair,
                functools.partial(merged.append, name),
            )
        model.gguf_writer = _Collector(model.gguf_writer, on_tensor, only)
        model.prepare_tensors()
    if sorted(merged) != sorted(known):
        raise _unmergeable(
            f"{len(known)} LoRA pairs should be merged once each; {len(merged)} were"
        )


def tensor_names(directory: Path, base: Path, weights: Iterable[str]) -> dict[str, str]:
    """The names that these weights of `base` have in its GGUF, without those that become several tensors or
    a part of one. Computes nothing. Raises ChildFailed (`conversion_failed`)."""
    _require(directory / MODEL_SCRIPT)
    conversion = _conversion(directory)
    mapped: dict[str, tuple[str, int]] = {}
    with torch.inference_mode(), _failure_as_error():
        model = _model(conversion, base)
        for weight in weights:
            item = model.filter_tensors((weight, lambda: None))
            # What it raises for a name that it has no one tensor for.
            with contextlib.suppress(ValueError):
                if item is not None and item[0] in model.model_tensors:
                    elements = math.prod(model.model_tensors[item[0]]().shape)
                    mapped[weight] = str(model.map_tensor_name(item[0])), elements
        model.gguf_writer = emitted = _Sizes(model.gguf_writer)
        model.prepare_tensors()
    # Some are split by what comes after the names.
    return {
        weight: name
        for weight, (name, elements) in mapped.items()
        if emitted.elements.get(name) == elements
    }


def _model(conversion: Any, base: Path) -> Any:
    """Upstream's converter of one model, which has read the names of its weights."""
    hparams = conversion.ModelBase.load_hparams(base, False)
    upstream = conversion.get_model_class(
        conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    )
    gguf = importlib.import_module("gguf")
    return upstream(base, gguf.LlamaFileType.ALL_F32, base, hparams=hparams)


def _under_upstreams_names(upstream: Any, pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """The converter drops parts of names, such as those of multimodal wrappers, before it looks at them."""
    found: dict[str, LoraPair] = {}
    for name, pair in pairs.items():
        item = upstream.filter_tensors((name, lambda: None))
        if item is None and not pair.b.any():
            continue  # Never trained, and of a part that no GGUF has, such as a tower for pictures.
        if item is None or item[0] in found:
            raise _unmergeable(f"{name} should be a weight of the base's GGUF; that has none of it")
        found[item[0]] = pair
    return found


def _merging(
    lazy: Any, weight: Callable[[], Any], pair: LoraPair, on_merged: Callable[[], None]
) -> Any:
    """The weight as the converter takes it, to be computed when it is asked for."""
    plain = weight()
    shape = (pair.b.shape[0], pair.a.shape[1])
    if tuple(plain.shape) != shape:
        raise _unmergeable(f"a pair of {[*shape]} should not change a weight of {[*plain.shape]}")

    def compute(values: torch.Tensor) -> torch.Tensor:
        on_merged()
        return pair.add_to(values)

    meta = lazy.meta_with_dtype_and_shape(torch.float32, shape)
    return lazy(meta=meta, args=(plain,), func=compute)


class _Collector:
    """Stands in for the converter's writer, which would keep every tensor to the end."""

    def __init__(self, writer: Any, on_tensor: OnTensor, only: Collection[str] | None) -> None:
        self._writer = writer
        self._on_tensor = on_tensor
        self._only = only

    def add_tensor(self, name: str, tensor: Any, raw_dtype: Any = None) -> None:
        if self._only is not None and name not in self._only:
            return
        lazy = importlib.import_module("gguf").LazyNumpyTensor
        values = lazy.to_eager(tensor)
        # A few come in 16 bits, whatever was asked for; blocks of its own making cannot be taken.
        if not isinstance(values, np.ndarray) or values.dtype not in (np.float32, np.float16):
            raise _failed(f"{name} should come as numbers; it comes as {raw_dtype!r}")
        self._on_tensor(name, values)

    def __getattr__(self, name: str) -> Any:
        # Metadata, which nobody will write: the base's own file has it.
        return getattr(self._writer, name)


def _conversion(directory: Path) -> Any:
    with _importable(directory):
        return importlib.import_module("conversion")


class _Sizes:
    """Stands in for the converter's writer, and asks no tensor for its values."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.elements: dict[str, int] = {}

    def add_tensor(self, name: str, tensor: Any, raw_dtype: Any = None) -> None:
        self.elements[name] = math.prod(tensor.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """The scripts import the packages `conversion` and `gguf` that lie beside them."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


@contextlib.contextmanager
def _failure_as_error() -> Iterator[None]:
    try:
        yield
    except (ChildFailed, MemoryError):
        raise
    except Exception as exc:
        if durable.no_room(exc) or durable.disk_failed(exc):
            raise
        # Upstream raises whatever comes to hand for a model that it does not know.
        raise _failed(f"{type(exc).__name__}: {exc}") from exc


def _require(script: Path) -> None:
    if not script.is_file():
        raise ConfigurationError(
            "no_converter",
            f"{script} should be llama.cpp's converter; there is no such file",
            next_step="run the installer again, or set converter_dir",
        )


def _failed(reason: str) -> ChildFailed:
    return ChildFailed(
        "conversion_failed",
        f"llama.cpp's converter should take this model, but: {reason}",
        next_step="see whether llama.cpp knows the model's architecture",
    )


def _unmergeable(reason: str) -> ChildFailed:
    return ChildFailed(
        "release_check_failed",
        f"the adapter cannot be merged: {reason}",
        next_step="check that the adapter was trained on this base model",
    )
