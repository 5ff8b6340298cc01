"""Decide whether a Hugging Face directory may come in, by names, types and headers alone.

Nothing is loaded here and nothing from the directory is run. Everything that is not known to be harmless
is refused by name, and all faults are told at once.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from appliance.basemodels import counts, safetensors_header
from appliance.errors import InvalidInput

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "model*.safetensors",
    "model.safetensors.index.json",
    *(stem + suffix for stem in ("LICENSE", "LICENCE", "NOTICE") for suffix in ("", ".txt", ".md")),
    "README.md",
)
# What download tools and publishers leave beside a model; harmless, and of no use to us.
IGNORED = (".cache", ".gitattributes", ".gitignore", "*.md")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
MAX_JSON_BYTES = 128 << 20
MODEL_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
ARCHITECTURE = re.compile(r"[A-Z][A-Za-z0-9_]{0,127}")


def check(source: Path) -> list[Path]:
    """The files of `source` to copy; raises InvalidInput naming every fault."""
    entries = [
        entry
        for entry in sorted(source.iterdir())
        if _matches(entry.name, COPIED) or not _matches(entry.name, IGNORED)
    ]
    faults = [fault for entry in entries if (fault := _entry_fault(entry, source))]
    files = [entry for entry in entries if _matches(entry.name, COPIED) and entry.is_file()]
    tensors = 0
    for path in files:
        if path.suffix == ".safetensors":
            try:
                tensors += len(safetensors_header.read(path))
            except (ValueError, RecursionError) as exc:
                faults.append(f"{path.name}: {exc}")
    for path in files:
        if path.suffix == ".json":
            faults += _content_faults(path, tensors)
    faults += _index_faults(source, files)
    names = {path.name for path in files}
    if "config.json" not in names:
        faults.append("config.json: is missing")
    if not any(name.endswith(".safetensors") for name in names):
        faults.append("model.safetensors: is missing")
    if faults:
        raise InvalidInput(
            "unsafe_model_directory",
            f"{source} cannot be imported: " + "; ".join(faults),
            param="source",
            next_step="remove what does not belong there, or get the model as safetensors",
        )
    return files


def copy(files: list[Path], destination: Path) -> Iterator[Path]:
    """Copy what `check` returned, content only; yields each copy when it is complete."""
    for path in files:
        target = destination / path.name
        shutil.copyfile(path.resolve(strict=True), target)
        yield target


def _entry_fault(entry: Path, source: Path) -> str | None:
    name = entry.name
    if entry.is_symlink() and not _stays_inside(entry, source):
        return f"{name}: is a link to outside the directory"
    if entry.suffix in PICKLES:
        return f"{name}: is a pickle, which can run code when it is read"
    if entry.suffix == ".py":
        return f"{name}: is code, and models bring no code here"
    if not entry.is_file():
        return f"{name}: is not a regular file"
    if not _matches(name, COPIED):
        return f"{name}: is not a file of a known kind"
    return None


def _stays_inside(entry: Path, source: Path) -> bool:
    try:
        return entry.resolve().is_relative_to(source.resolve())
    except (OSError, RuntimeError):
        return False  # a link in a circle


def _content_faults(path: Path, tensors: int) -> list[str]:
    content, fault = _read_object(path)
    if fault:
        return [fault]
    try:
        code = _holds_auto_map(content)
    except RecursionError:
        return [f"{path.name}: nests too deep"]
    faults = [f"{path.name}: names code to run (auto_map)"] if code else []
    return faults + (_config_faults(content, tensors) if path.name == "config.json" else [])


def _read_object(path: Path) -> tuple[dict[str, Any], str | None]:
    if path.stat().st_size > MAX_JSON_BYTES:
        return {}, f"{path.name}: has more than {MAX_JSON_BYTES} bytes"
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        return {}, f"{path.name}: is not JSON: {exc}"
    return (content, None) if isinstance(content, dict) else ({}, f"{path.name}: is no JSON object")


def _config_faults(config: dict[str, Any], tensors: int) -> list[str]:
    faults = [f"config.json: {fault}" for fault in counts.faults(config, tensors)]
    model_type = config.get("model_type")
    if not (isinstance(model_type, str) and MODEL_TYPE.fullmatch(model_type)):
        faults.append(f"config.json: model_type should be a plain name; it is {model_type!r}")
    architectures = config.get("architectures")
    if not (
        isinstance(architectures, list)
        and len(architectures) == 1
        and isinstance(architectures[0], str)
        and ARCHITECTURE.fullmatch(architectures[0])
    ):
        faults.append(f"config.json: architectures should be one name; it is {architectures!r}")
    if "quantization_config" in config:
        faults.append("config.json: the weights are quantized; plain ones are needed to train on")
    return faults


def _holds_auto_map(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(map(_holds_auto_map, value.values()))
    return isinstance(value, list) and any(map(_holds_auto_map, value))


def _index_faults(source: Path, files: list[Path]) -> list[str]:
    index = source / "model.safetensors.index.json"
    if index not in files:
        return []
    content, _ = _read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        return [f"{index.name}: should hold a weight_map"]
    shards = {path.name for path in files if path.suffix == ".safetensors"}
    strangers = sorted({str(shard) for shard in weight_map.values()} - shards)
    return [f"{index.name}: names {name!r}, which is not there" for name in strangers]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
