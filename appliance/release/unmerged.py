"""What base and adapter do side by side, unmerged, as llama.cpp runs them.

A release is held against this besides what was trained, since there is no base in NF4 in it: what merging
does wrong shows here, whatever precision the training left. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance import gguf_header
from appliance.child_records import Likely, TrainedAnswer
from appliance.errors import ChildFailed
from appliance.records import Quantization
from appliance.release.likeness import log_softmax, most_likely
from appliance.release.llamacpp import FILE_TYPES, Model


class Unmerged(NamedTuple):
    """The base's type, and of each answer the most likely tokens at each of its places."""

    base_quantization: Quantization
    likely: list[tuple[Likely, ...]]


def of(
    base_file: Path,
    adapter_file: Path,
    answers: Sequence[TrainedAnswer],
    *,
    threads: int,
    alive: Callable[[], None],
) -> Unmerged:
    """Ask base and adapter at the very places that `answers` tell likelihoods of."""
    found = []
    with Model(base_file, threads=threads, adapter=adapter_file) as model:
        for each in answers:
            tokens = [*each.prompt, *each.answer]
            rows = log_softmax(model.logits(tokens[:-1], len(each.likely)))
            found.append(tuple(most_likely(row, len(each.likely[0])) for row in rows))
            alive()
    return Unmerged(_quantization(base_file), found)


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
