"""Tiny models of random weights, one a family of architectures, as Hugging Face directories."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Columns divide by 256 here, so that K-quants need no fallback, and by 32 alone there.
_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 288,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
_VOCABULARY = 1024
_SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 4}
_STARTER_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 49152}


def llama(starter: Path, directory: Path) -> None:
    """Permuted queries and keys; embeddings of its own at the output; in bfloat16, in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_SIZES, **_STARTER_IDS, tie_word_embeddings=False)
    _save(LlamaForCausalLM(config), directory, dtype="bfloat16", max_shard_size="8MB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    _copy_tokenizer(starter, directory)


def mistral(starter: Path, directory: Path) -> None:
    """A vocabulary of sentencepiece."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(**_SIZES, **_SENTENCEPIECE_IDS, vocab_size=_VOCABULARY, head_dim=64)
    _save(MistralForCausalLM(config), directory)
    _write_sentencepiece(directory)


def qwen2(starter: Path, directory: Path) -> None:
    """Biases at queries, keys and values; one matrix for embeddings and output.

    Its name makes transformers split text as Qwen does, whatever the tokenizer's own file says.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**_SIZES, **_STARTER_IDS, tie_word_embeddings=True)
    _save(Qwen2ForCausalLM(config), directory, dtype="float16")
    _copy_tokenizer(starter, directory)


def qwen3(starter: Path, directory: Path) -> None:
    """Norms of queries and keys; heads wider than the model divided among them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        **_SIZES,
        **_STARTER_IDS,
        head_dim=128,
        tie_word_embeddings=True,
    )
    _save(Qwen3ForCausalLM(config), directory, dtype="bfloat16")
    _copy_tokenizer(starter, directory)


def gemma3(starter: Path, directory: Path) -> None:
    """Norms that are stored less one; sliding windows; a vocabulary of sentencepiece."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **{**_SIZES, "num_hidden_layers": 7},
        **_SENTENCEPIECE_IDS,
        vocab_size=_VOCABULARY,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=64,
    )
    _save(Gemma3ForCausalLM(config), directory, dtype="bfloat16")
    _write_sentencepiece(directory)


def phi3(starter: Path, directory: Path) -> None:
    """Queries, keys and values in one matrix, gate and up in another."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        **_SIZES,
        **_SENTENCEPIECE_IDS,
        vocab_size=_VOCABULARY,
        original_max_position_embeddings=512,
        sliding_window=None,
    )
    _save(Phi3ForCausalLM(config), directory)
    _write_sentencepiece(directory, space_prefix=True)


FAMILIES: tuple[Callable[[Path, Path], None], ...] = (llama, mistral, qwen2, qwen3, gemma3, phi3)


def _save(model: Any, directory: Path, *, dtype: str = "float32", **options: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            # Norms and biases begin as ones and zeros, which would hide how they are converted.
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.to(getattr(torch, dtype)).save_pretrained(directory, **options)


def _copy_tokenizer(starter: Path, directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(starter / name, directory / name)


def _write_sentencepiece(directory: Path, *, space_prefix: bool = False) -> None:
    """A vocabulary with bytes for what it does not know, and ChatML's two tokens.

    With `space_prefix`, a space is put before the text and behind every special token.
    """
    import sentencepiece
    from transformers import LlamaTokenizer

    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]
    corpus = [" ".join(draw.choices(words, k=12)) for _ in range(3000)]
    model = directory / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(model),
        model_type="bpe",
        vocab_size=_VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=space_prefix,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    model.with_suffix(".vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(
        directory,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        add_prefix_space=space_prefix,
        legacy=space_prefix,
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(directory)
