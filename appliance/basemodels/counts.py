"""How many parts a model says it has, held against how many tensors it brings.

Libraries build a model from its configuration, part by part, before they look at a single weight: a number
that means nothing would keep them at it for hours. What is no such number is left to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Of config.json ("num_hidden_layers", "n_routed_experts") and of a GGUF ("llama.block_count").
_COUNT = re.compile(
    r"(\w+_)?(n|num)_(\w+_)?(layers?|experts|blocks)|(encoder|decoder)_layers|([\w-]+\.)?(block|expert)_count"
)


def faults(described: Mapping[str, Any], tensors: int) -> Iterator[str]:
    """Of a configuration, nested ones included: numbers of parts that no `tensors` tensors could be."""
    for key, value in described.items():
        if isinstance(value, Mapping):
            yield from faults(value, tensors)
        elif _COUNT.fullmatch(key) and isinstance(value, int | float) and not 0 <= value <= tensors:
            yield f"{key} should be at most {tensors}, the number of its tensors; it is {value!r}"
