"""Checkpoints that a kill or a power cut cannot tear, written without pickle.

A checkpoint is a directory that gets its name by rename, and in it a manifest with the SHA-256 of every
other file. What is random goes in as well, so that a resumed run ends bit-equal to an uninterrupted one.

Knows optimizers and schedulers as things with a `state_dict`; nothing of models or data.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy
import safetensors.torch
import torch

from appliance import batch, durable
from appliance.errors import CorruptState

PREFIX = "checkpoint-"
INCOMING = ".incoming"
MANIFEST = "manifest.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER = "optimizer.json"
SCHEDULER = "scheduler.json"
RANDOM = "random.json"
KEPT = 2


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 by file name."""

    files: dict[str, str]


class OptimizerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything of an optimizer's state that is not a tensor; `scalars` by parameter and name."""

    param_groups: list[dict[str, Any]]
    scalars: dict[int, dict[str, Any]]


class RandomState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The generators of Python, NumPy, torch on the CPU, and torch on each GPU."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[str, list[int], int, int, float]
    torch: bytes
    cuda: list[bytes]


@contextlib.contextmanager
def publishing(root: Path, step: int) -> Iterator[Path]:
    """A directory to fill, which then becomes the checkpoint of `step`; older ones are pruned."""
    incoming = root / INCOMING
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    try:
        yield incoming
        digests = {path.name: durable.sha256_of(path) for path in sorted(incoming.iterdir())}
        durable.write_json(incoming / MANIFEST, Manifest(files=digests))
        durable.publish_directory(incoming, root / f"{PREFIX}{step}")
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    for path in _newest_first(root)[KEPT:]:
        shutil.rmtree(path)


def newest_valid(root: Path, reporter: batch.Reporter) -> Path | None:
    """The checkpoint to resume from; damaged ones are reported and removed."""
    for path in _newest_first(root):
        try:
            verify(path)
        except CorruptState as exc:
            reporter.report(f"damaged:{path.name}", f"{exc}; it is not used", level="warn")
            shutil.rmtree(path)
        else:
            return path
    return None


def verify(path: Path) -> None:
    """Raise CorruptState unless every file is what was written."""
    for name, digest in durable.read_json(path / MANIFEST, Manifest).files.items():
        file = path / name
        if not file.is_file() or durable.sha256_of(file) != digest:
            raise CorruptState(
                "damaged_checkpoint", f"{path.name}/{name} should have SHA-256 {digest}; it has not"
            )


def write_optimizer(optimizer: Any, directory: Path) -> None:
    """Write an optimizer's state: its tensors as safetensors, the rest as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[int, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                scalars.setdefault(index, {})[name] = value
    # Straight from where they are: `save` would hold them twice more.
    safetensors.torch.save_file(tensors, directory / OPTIMIZER_TENSORS)
    rest = OptimizerState(param_groups=state["param_groups"], scalars=scalars)
    durable.write_json(directory / OPTIMIZER, rest)


def load_optimizer(optimizer: Any, directory: Path) -> None:
    """The reverse of `write_optimizer`."""
    rest = durable.read_json(directory / OPTIMIZER, OptimizerState)
    state: dict[int, dict[str, Any]] = {index: dict(named) for index, named in rest.scalars.items()}
    for key, tensor in safetensors.torch.load_file(directory / OPTIMIZER_TENSORS).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": rest.param_groups})


def write_scheduler(scheduler: Any, directory: Path) -> None:
    """Write a learning-rate scheduler's state, which holds plain numbers only."""
    durable.write_json(directory / SCHEDULER, scheduler.state_dict())


def load_scheduler(scheduler: Any, directory: Path) -> None:
    """The reverse of `write_scheduler`."""
    scheduler.load_state_dict(durable.read_json(directory / SCHEDULER, dict))


def write_random_state(directory: Path) -> None:
    """Write the state of every random generator of this process."""
    legacy: Any = numpy.random.get_state(legacy=True)
    kind, keys, *rest = legacy
    state = RandomState(
        python=random.getstate(),
        numpy=(kind, keys.tolist(), *rest),
        torch=_to_bytes(torch.random.get_rng_state()),
        cuda=[_to_bytes(s) for s in torch.cuda.get_rng_state_all()],
    )
    durable.write_json(directory / RANDOM, state)


def load_random_state(directory: Path) -> None:
    """The reverse of `write_random_state`."""
    state = durable.read_json(directory / RANDOM, RandomState)
    random.setstate(state.python)
    kind, keys, position, has_gauss, cached = state.numpy
    numpy.random.set_state(
        (kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached)
    )
    torch.random.set_rng_state(_to_tensor(state.torch))
    torch.cuda.set_rng_state_all([_to_tensor(s) for s in state.cuda])


def _newest_first(root: Path) -> list[Path]:
    paths = root.glob(f"{PREFIX}*")
    return sorted(paths, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _to_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
