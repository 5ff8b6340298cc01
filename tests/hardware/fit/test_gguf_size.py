"""Predicted sizes of GGUF files against published ones, and against files made here by llama.cpp."""

from __future__ import annotations

import ctypes

import pytest

from appliance.hardware import catalogue
from appliance.hardware.fit import gguf_size
from appliance.hardware.fit.kv_cache import cache_bytes
from appliance.hardware.fit.shapes import ModelShape
from appliance.settings import CHECKOUT, STARTER

GIB = 1 << 30
MODELS = catalogue.load(CHECKOUT / "firmware_profiles")

# llama.cpp, tools/quantize/README.md: Llama 3.1 8B, GiB.
PUBLISHED = {
    "Q2_K": 2.95,
    "Q3_K_M": 3.74,
    "Q4_K_M": 4.58,
    "Q5_K_M": 5.33,
    "Q6_K": 6.14,
    "Q8_0": 7.95,
    "F16": 14.96,
    "BF16": 14.96,
}


@pytest.mark.parametrize("mix", gguf_size.MIXES)
def test_size_is_the_published_one(mix):
    predicted = gguf_size.file_bytes(MODELS["llama-3.1-8b-instruct"].shape, mix) / GIB
    assert predicted == pytest.approx(PUBLISHED[mix], rel=0.01)


def test_unknown_mix_is_refused():
    with pytest.raises(KeyError):
        gguf_size.file_bytes(MODELS["llama-3.1-8b-instruct"].shape, "Q9_X")


# llama.cpp's numbers of the mixes (include/llama.h, llama_ftype).
FILE_TYPES = {
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
}
# Columns divide by 256, and four heads share a value: every rule of the mixes is met.
SMALL = ModelShape(
    hidden_size=256,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=768,
    vocab_size=1024,
    tie_word_embeddings=False,
)


@pytest.mark.llama
@pytest.mark.parametrize("mix", gguf_size.MIXES)
def test_size_of_the_starter_is_what_llama_cpp_writes(mix, tmp_path):
    source = STARTER / "SmolLM2-135M-Instruct.Q4_1.gguf"
    written = quantized_bytes(source, mix, tmp_path)
    predicted = gguf_size.file_bytes(MODELS["smollm2-135m-instruct"].shape, mix)
    assert predicted == pytest.approx(written, rel=0.01)


@pytest.mark.llama
@pytest.mark.parametrize("mix", gguf_size.MIXES)
def test_tensors_of_a_model_without_fallbacks_are_exact(mix, tmp_path):
    source = tmp_path / "f32.gguf"
    write_random(source, SMALL)
    written = quantized_bytes(source, mix, tmp_path)
    header = data_offset(tmp_path / f"{mix}.gguf")
    assert sum(gguf_size.tensor_bytes(SMALL, mix)) == written - header


def quantized_bytes(source, mix, tmp_path) -> int:
    """Size of what llama.cpp makes of `source`."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[mix]
    params.allow_requantize = True
    target = tmp_path / f"{mix}.gguf"
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert status == 0
    return target.stat().st_size


def write_random(path, shape: ModelShape) -> None:
    """A Llama of this shape in 32 bits; its numbers are noise and its vocabulary is made up."""
    import gguf
    import numpy

    noise = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, *dimensions: int) -> None:
        writer.add_tensor(name, noise.standard_normal(dimensions, dtype=numpy.float32))

    add("token_embd.weight", shape.vocab_size, shape.hidden_size)
    add("output.weight", shape.vocab_size, shape.hidden_size)
    add("output_norm.weight", shape.hidden_size)
    for layer in range(shape.num_hidden_layers):
        add(f"blk.{layer}.attn_norm.weight", shape.hidden_size)
        add(f"blk.{layer}.ffn_norm.weight", shape.hidden_size)
        for linear in shape.linears:
            add(f"blk.{layer}.{linear.name}.weight", linear.outputs, linear.inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def data_offset(path) -> int:
    import gguf

    return int(gguf.GGUFReader(path).data_offset)


def test_cache_is_two_vectors_a_layer_and_token():
    llama = MODELS["llama-3.1-8b-instruct"].shape
    # 1024 MiB at 8192 tokens in 16 bits: what llama.cpp prints for this model.
    assert cache_bytes(llama, 8192, "f16") == 1 << 30
    assert cache_bytes(llama, 8192, "q8_0") == (1 << 30) * 17 // 32
