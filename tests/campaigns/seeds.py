"""The smallest models that can be imported: one as a GGUF, one as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HIDDEN, _INTERMEDIATE, _CONTEXT = 32, 64, 512
_MERGES = ("t h", "th e", "Ġ a")


def write_gguf(path: Path) -> None:
    """One layer in float32, and a vocabulary of bytes."""
    import gguf
    import numpy as np

    tokens, writer = _tokens(), gguf.GGUFWriter(path, "llama")
    writer.add_name("seed")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_INTERMEDIATE)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    chance = np.random.default_rng(0)
    sizes = {
        "token_embd": (len(tokens), _HIDDEN),
        "output_norm": (_HIDDEN,),
        "blk.0.attn_norm": (_HIDDEN,),
        "blk.0.attn_q": (_HIDDEN, _HIDDEN),
        "blk.0.attn_k": (_HIDDEN // 2, _HIDDEN),
        "blk.0.attn_v": (_HIDDEN // 2, _HIDDEN),
        "blk.0.attn_output": (_HIDDEN, _HIDDEN),
        "blk.0.ffn_norm": (_HIDDEN,),
        "blk.0.ffn_gate": (_INTERMEDIATE, _HIDDEN),
        "blk.0.ffn_up": (_INTERMEDIATE, _HIDDEN),
        "blk.0.ffn_down": (_HIDDEN, _INTERMEDIATE),
    }
    for name, shape in sizes.items():
        values = chance.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_directory(directory: Path) -> None:
    """The same sizes, in two shards."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = _tokens()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=_HIDDEN,
        intermediate_size=_INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="40KB")
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(left, right) for left, right in map(str.split, _MERGES)],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    # The library leaves them out of small models' files, and publishers have them.
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": SPECIAL[2]}))


def _tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *letters, *("".join(merge.split()) for merge in _MERGES)]
