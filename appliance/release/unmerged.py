"""What base and adapter do side by side, unmerged, as llama.cpp runs them.

A release is held against this besides what was trained, since there is no base in NF4 in it: what merging
does wrong shows here, whatever precision the training left. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from appliance import gguf_header
from appliance.child_records import Likely, TrainedAnswer
from appliance.errors import ChildFailed
from appliance.records import Quantization
from appliance.release.likeness import divergence, log_softmax, most_likely
from appliance.release.llamacpp import FILE_TYPES, Model

# At each of a prompt's last places the most likely tokens.
Prompt = tuple[Likely, ...]


class Unmerged(NamedTuple):
    """The base's type; its prompts, one of each answer; and their mean divergence from the trained model."""

    base_quantization: Quantization
    prompts: list[Prompt]
    kl_to_trained: float


def of(
    base_file: Path,
    adapter_file: Path,
    answers: Sequence[TrainedAnswer],
    *,
    threads: int,
    alive: Callable[[], None],
) -> Unmerged:
    """Ask at those places of the prompts that `answers` tell likelihoods of."""
    prompts: list[Prompt] = []
    divergences: list[float] = []
    with Model(base_file, threads=threads, adapter=adapter_file) as model:
        for each in answers:
            places = len(each.likely) - len(each.answer)
            together = log_softmax(model.logits(each.prompt[:-1], places))
            prompts.append(tuple(most_likely(row, len(each.likely[0])) for row in together))
            divergences += map(divergence, each.likely, together)
            alive()
    return Unmerged(_quantization(base_file), prompts, float(np.mean(divergences)))


def _quantization(path: Path) -> Quantization:
    file_type = gguf_header.read(path).metadata.get("general.file_type")
    for quantization, number in FILE_TYPES.items():
        if number == file_type:
            return quantization
    raise ChildFailed(
        "release_check_failed",
        f"{path.name} should be of a type that the base model is kept in; it is of type {file_type}",
        next_step="import the base model again",
    )
