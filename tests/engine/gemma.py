"""A tiny Gemma 3 with random weights: five of six layers look back over a sliding window alone."""

from __future__ import annotations

from pathlib import Path

WINDOW = 64
N_VOCAB = 257
CONTEXT_LENGTH = 4096
_ARCHITECTURE = "gemma3"
_LAYERS, _EMBEDDING, _HEADS, _KV_HEADS, _HEAD, _FEED_FORWARD = 7, 64, 4, 2, 16, 128


def write(path: Path) -> Path:
    """As llama.cpp's converter writes one, with a vocabulary of bytes."""
    import gguf
    import numpy as np

    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WINDOW)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*map(_byte, range(256)), "<end>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<end>{% endfor %}")

    def tensor(name: str, *shape: int) -> None:
        # Norms as Gemma's are stored: one is added to them already.
        values = random.standard_normal(shape, dtype=np.float32) * 0.1 + (len(shape) == 1)
        writer.add_tensor(f"{name}.weight", values)

    tensor("token_embd", N_VOCAB, _EMBEDDING)
    tensor("output_norm", _EMBEDDING)
    for layer in range(_LAYERS):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensor(f"blk.{layer}.{norm}", _EMBEDDING)
        for norm in ("attn_q_norm", "attn_k_norm"):
            tensor(f"blk.{layer}.{norm}", _HEAD)
        tensor(f"blk.{layer}.attn_q", _HEADS * _HEAD, _EMBEDDING)
        tensor(f"blk.{layer}.attn_k", _KV_HEADS * _HEAD, _EMBEDDING)
        tensor(f"blk.{layer}.attn_v", _KV_HEADS * _HEAD, _EMBEDDING)
        tensor(f"blk.{layer}.attn_output", _EMBEDDING, _HEADS * _HEAD)
        tensor(f"blk.{layer}.ffn_gate", _FEED_FORWARD, _EMBEDDING)
        tensor(f"blk.{layer}.ffn_up", _FEED_FORWARD, _EMBEDDING)
        tensor(f"blk.{layer}.ffn_down", _EMBEDDING, _FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte(value: int) -> str:
    """A byte as GPT-2's vocabularies write it: each a printable character of its own."""
    return (
        chr(value) if chr(value).isprintable() and value not in (0x20, 0xAD) else chr(0x100 + value)
    )
