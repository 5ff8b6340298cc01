"""LoRA adapters for the starter model, with random weights: files as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

# The starter's attention: what comes in, and what its queries have.
N_EMBD = 576
RANK = 4


def write(path: Path, seed: int, *, strength: float = 0.2, rows: int = N_EMBD) -> Path:
    """Pairs for the queries and outputs of the first layers; `rows` other than the model's fit no model."""
    import gguf
    import numpy as np

    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(8):
        for name in ("attn_q", "attn_output"):
            a = random.standard_normal((RANK, rows), dtype=np.float32) * strength
            b = random.standard_normal((N_EMBD, RANK), dtype=np.float32) * strength
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
