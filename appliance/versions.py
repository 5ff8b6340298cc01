"""Which software made a model: the distributions that are installed and have a part in it."""

from __future__ import annotations

from importlib import metadata

_PARTS = (
    "finetuning-appliance",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "llama-cpp-python",
)


def installed() -> dict[str, str]:
    """Version by name, of those that are there."""
    found = {}
    for name in _PARTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
