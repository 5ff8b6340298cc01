"""Turn one GGUF file into an ordinary Hugging Face directory with float32 weights.

The file's header must have passed `appliance.gguf_header`. What transformers makes of a GGUF tokenizer is
compared with llama.cpp, the format's own implementation, and refused where the two differ: a model
trained on other tokens than it is served with is a worse model, and nobody sees why.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from appliance import batch
from appliance.basemodels import counts
from appliance.errors import InvalidInput
from appliance.gguf_header import GgufHeader

# What llama.cpp refuses is told by its return values. A module constant, so that it is never freed.
_SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)
# Digits, runs of white space, contractions, scripts: where pre-tokenizers differ from each other.
PROBES = (
    "It's 12:30 on 2024-01-01, isn't it? YOU'LL pay $1,234.50!",
    "a  1\n\n  23 x\t4   \n\n\n   end ",
    "½ ² ³ 日本語 12 Ünïcödé русский العربية 😀👍🏽",
    "def f(x):\n    if x == 10:\n        return [x, 'y', \"z\"]\n\n\n# --> <= != ...",
    "<b>tag</b> snake_case camelCase HTTPServer https://example.org/a?b=c&d=%20",
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(source: Path, header: GgufHeader, hf: Path, reporter: batch.Reporter) -> None:
    """Write config, weights and tokenizer of `source` into the empty directory `hf`."""
    if (parts := header.metadata.get("split.count", 1)) != 1:
        raise InvalidInput(
            "split_gguf",
            f"{source.name} should hold a whole model; it is one of {parts} parts",
            next_step="put the parts together with `llama-gguf-split --merge`, or import the publisher's "
            "safetensors directory",
        )
    if faults := list(counts.faults(header.metadata, len(header.tensors))):
        raise InvalidInput(
            "invalid_gguf",
            f"{source.name}: {'; '.join(faults)}",
            next_step="copy the file again and compare its digest with the publisher's",
        )
    # A link in an empty directory: transformers would read other files that lie beside the source.
    link = hf / "model.gguf"
    link.symlink_to(source)
    try:
        # Read once for both: the parser takes seconds for a large vocabulary.
        config = _config(link, header)
        reporter.alive()
        tokenizer = _tokenizer(link, header, config)
        reporter.alive()
        model = _model(link, header, config)
    finally:
        link.unlink()
    reporter.report("write", f"writing {model.num_parameters():,} parameters as safetensors")
    model.save_pretrained(hf)
    tokenizer.save_pretrained(hf)


def _config(link: Path, header: GgufHeader) -> Any:
    try:
        return AutoConfig.from_pretrained(link.parent, gguf_file=link.name)
    except Exception as exc:
        raise _unreadable(header, exc) from exc


def _model(link: Path, header: GgufHeader, config: Any) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            link.parent,
            gguf_file=link.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except Exception as exc:
        raise _unreadable(header, exc) from exc


def _tokenizer(link: Path, header: GgufHeader, config: Any) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name, config=config)
        set_pre_tokenizer(tokenizer.backend_tokenizer, header.metadata.get("tokenizer.ggml.pre"))
    except Exception as exc:
        raise _unreadable(header, exc) from exc
    tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    compare_with_llama_cpp(tokenizer, link)
    return tokenizer


def set_pre_tokenizer(tokenizer: Tokenizer, name: str | None) -> None:
    """Give `tokenizer` the splitting rules that llama.cpp knows under `name`.

    transformers sets one rule per architecture and overlooks the name. The rules are those of the
    publishers' own tokenizer.json files; other names keep what transformers chose.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif name == "llama-bpe":
        split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.model.ignore_merges = True


def compare_with_llama_cpp(tokenizer: Any, path: Path) -> None:
    """Raise InvalidInput unless `tokenizer` splits the probes as llama.cpp does with `path`'s vocabulary."""
    llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if model is None:
        raise InvalidInput(
            "invalid_gguf", "llama.cpp should load the file's vocabulary; it refuses it"
        )
    try:
        vocab = llama_cpp.llama_model_get_vocab(model)
        for probe in PROBES:
            found = tokenizer(probe, add_special_tokens=False)["input_ids"]
            expected = _llama_tokenize(vocab, probe)
            if found != expected:
                raise InvalidInput(
                    "tokenizer_differs",
                    "the tokenizer read from the GGUF should split text as llama.cpp does; "
                    f"{probe!r} gives {found} instead of {expected}",
                    next_step="import the publisher's safetensors directory instead",
                )
    finally:
        llama_cpp.llama_model_free(model)


def _llama_tokenize(vocab: Any, text: str) -> list[int]:
    data = text.encode()
    capacity = len(data) + 16
    tokens = (llama_cpp.llama_token * capacity)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, capacity, False, True)
    return tokens[:count]


def _unreadable(header: GgufHeader, exc: Exception) -> InvalidInput:
    architecture = header.metadata.get("general.architecture")
    return InvalidInput(
        "unreadable_gguf",
        f"the file should hold a model that transformers can read; for architecture "
        f"{architecture!r} it says: {exc}",
        next_step="import the publisher's safetensors directory instead",
    )
