"""How training computes, as far as those who plan its memory have to know it, too."""

from __future__ import annotations

# CPU features with instructions for bfloat16, as Linux names them (arch/x86/include/asm/cpufeatures.h;
# arch/arm64/kernel/cpuinfo.c). Without any of them training computes in float32.
BFLOAT16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# Micro-batches are padded to a multiple of so many tokens. With lengths of every kind neither the allocator's
# blocks nor oneDNN's kernels, made for each length, would be used again.
LENGTH_MULTIPLE = 16


def padded(tokens: int) -> int:
    """The length of a micro-batch whose longest row has so many tokens."""
    return -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
