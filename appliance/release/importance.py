"""What the quantizer should spare: reads the trainer's importance of inputs, and finds out whether it helps.

On data as narrow as one job's it may also do harm, so a release can be made with it and without, and the one
that is nearer to what was trained is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from appliance.child_records import TrainedAnswer
from appliance.errors import CorruptState
from appliance.records import ImportanceMatrix, ImportanceUse, Quantization
from appliance.release import likeness
from appliance.release.llamacpp import Model


class Importance(NamedTuple):
    """[inputs] in float32 by the base's name of the weight, and over how many tokens."""

    by_weight: Mapping[str, np.ndarray]
    tokens: int


def read(path: Path) -> Importance:
    """What the training child wrote; raises CorruptState if it is not whole."""
    try:
        with safe_open(path, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tokens = int(file.metadata()["tokens"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise CorruptState(
            "unreadable_file", f"{path} should hold what matters to each weight, but: {exc}"
        ) from exc
    for name, values in found.items():
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
            raise CorruptState(
                "unreadable_file", f"{path} should hold mean squares; for {name} it does not"
            )
    return Importance(found, tokens)


def by_tensor(importance: Importance, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """By the GGUF's name of the tensor, as llama.cpp's quantizer takes it; `names` has the weights' ones."""
    return {
        names[weight]: np.ascontiguousarray(values, dtype=np.float32)
        for weight, values in importance.by_weight.items()
        if weight in names
    }


def settle(
    plain: Path,
    weighted: Path,
    asked: ImportanceMatrix,
    tokens: int,
    answers: Sequence[TrainedAnswer],
    *,
    keeps_adapter: tuple[bool, bool],
    threads: int,
    alive: Callable[[], None],
) -> ImportanceUse:
    """Keep one of two files of the same type, as `plain`: the one that was `asked` for, or the nearer one.

    `keeps_adapter` says of either whether the adapter is in its weights: one that has lost it is not kept
    unless it was asked for.
    """
    kl_without, kl_with = (_divergence(path, answers, threads, alive) for path in (plain, weighted))
    plain_keeps, weighted_keeps = keeps_adapter
    better = kl_with < kl_without or not plain_keeps
    used = asked == "on" or (weighted_keeps and better)
    if used:
        weighted.replace(plain)
    else:
        weighted.unlink()
    return ImportanceUse(used=used, tokens=tokens, kl_with=kl_with, kl_without=kl_without)


def describe(use: ImportanceUse, quantization: Quantization) -> str:
    """One line for people."""
    return (
        f"{quantization} with an importance matrix of {use.tokens} tokens is {use.kl_with:.4f} nats from the "
        f"trained model, without one {use.kl_without:.4f}; it is {'used' if use.used else 'not used'}"
    )


def _divergence(
    path: Path, answers: Sequence[TrainedAnswer], threads: int, alive: Callable[[], None]
) -> float:
    """Mean, from what was trained, over the prompts and answers that are known of that."""
    parts = []
    with Model(path, threads=threads) as model:
        for each in answers:
            tokens = [*each.prompt, *each.answer]
            scores = model.logits(tokens[:-1], len(each.likely))
            parts.append(likeness.compare(each.likely, likeness.log_softmax(scores)))
            alive()
    return likeness.over(parts).mean_kl
