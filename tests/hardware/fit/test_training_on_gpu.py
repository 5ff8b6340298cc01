"""The training formula against measurements that others published.

Each row says what its stack did; nothing of that is fitted. Fitted are only the two constants between what is
allocated and what the process takes, on every other row, and judged on the rest; those that are used are
held against all rows.
"""

from __future__ import annotations

import pytest

from appliance.hardware import catalogue
from appliance.hardware.fit import needs
from appliance.hardware.fit.shapes import ModelShape
from appliance.hardware.fit.training_on_gpu import (
    TrainingSetup,
    adapter_parameters,
    allocated_bytes,
    checkpoint_bytes,
    weight_bytes,
)
from appliance.settings import CHECKOUT

MIB, GIB = 1 << 20, 1 << 30
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
LLAMA_2_7B = ModelShape(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
    tie_word_embeddings=False,
)


def shape(name: str) -> ModelShape:
    return catalogue.load(CHECKOUT / "firmware_profiles")[name].shape


def fitcheck(tokens: int) -> TrainingSetup:
    """T4, rank 32 on the attention, AdamW and embeddings in 32 bits, all logits (Anassbzdd/fitcheck)."""
    return TrainingSetup(
        technique="qlora",
        tokens=tokens,
        r=32,
        targets=ATTENTION,
        double_quantization=False,
        embedding_bytes=4,
        residual_bytes=4,
        adapter_bytes=8,
        logits="full",
    )


# Anassbzdd/fitcheck, data/measurements/t4-qlora-2026-09-01.json: allocated MiB.
FITCHECK = [
    ("tinyllama-1.1b-chat", 2 * 512, 1847),
    ("tinyllama-1.1b-chat", 2 * 1024, 2528),
    ("tinyllama-1.1b-chat", 2 * 2048, 3897),
    ("smollm2-1.7b-instruct", 4 * 1024, 5281),
    ("qwen2.5-1.5b-instruct", 2 * 1024, 6823),
]


# The same five, as NVML counted the whole process.
FITCHECK_PROCESS_MIB = [2267, 3033, 4781, 6049, 7373]


@pytest.mark.parametrize(("model", "tokens", "published_mib"), FITCHECK)
def test_allocated_is_what_was_measured_on_a_t4(model, tokens, published_mib):
    predicted = allocated_bytes(shape(model), fitcheck(tokens)) / MIB
    assert predicted == pytest.approx(published_mib, rel=0.05)


def test_allocated_is_what_torchtune_measured():
    # meta-pytorch/torchtune, README: 4090, Llama 3.1 8B, rank 8, batch 2, 2048 tokens, chunked loss.
    setup = TrainingSetup(technique="qlora", tokens=2 * 2048, r=8, adapter_bytes=4)
    predicted = allocated_bytes(shape("llama-3.1-8b-instruct"), setup) / GIB
    assert predicted == pytest.approx(7.4, rel=0.15)


def test_parts_are_those_of_the_qlora_paper():
    # arXiv:2305.14314, section 3: LLaMA 7B, batch 1, 512 tokens: 5048 MB base, 26 MB LoRA, 18 MB gradients
    # of inputs a sequence with checkpointing.
    # Its code prepares the model with PEFT, which makes the embeddings 32 bits wide.
    setup = TrainingSetup(technique="qlora", tokens=512, r=1, embedding_bytes=4)
    assert weight_bytes(LLAMA_2_7B, setup) / 1e6 == pytest.approx(5048, rel=0.15)
    assert checkpoint_bytes(LLAMA_2_7B, setup) / 32 / 1e6 == pytest.approx(4.2, rel=0.01)


# hiyouga/LLaMA-Factory, wiki "Performance comparison": A100, Llama 2 7B, rank 8: GB by length in thousands.
LLAMA_FACTORY = [(1, 6), (2, 7), (4, 9), (8, 12), (16, 19), (32, 32)]


def factory_gb(thousands: int) -> float:
    setup = TrainingSetup(
        technique="qlora",
        tokens=thousands * 1024,
        r=8,
        residual_bytes=4,
        adapter_bytes=8,
        logits="fused",
    )
    return allocated_bytes(LLAMA_2_7B, setup) / 1e9


def test_process_takes_a_constant_and_a_factor_more():
    fitted, judged = LLAMA_FACTORY[::2], LLAMA_FACTORY[1::2]
    factor, constant = straight_line([(factory_gb(length), total) for length, total in fitted])
    assert 1.0 <= factor <= 1.35
    for length, published in judged:
        assert factor * factory_gb(length) + constant == pytest.approx(published, rel=0.15)


def test_process_is_never_much_under_what_was_published():
    predicted = [
        (needs.gpu_process_bytes(round(factory_gb(length) * 1e9)) / 1e9, published)
        for length, published in LLAMA_FACTORY
    ]
    predicted += [
        (needs.gpu_process_bytes(allocated_bytes(shape(model), fitcheck(tokens))) / MIB, published)
        for (model, tokens, _), published in zip(FITCHECK, FITCHECK_PROCESS_MIB, strict=True)
    ]
    assert len(predicted) == 11
    for ours, published in predicted:
        assert 0.93 * published <= ours <= 1.19 * published


# unsloth.ai/docs/basics/unsloth-benchmarks, Hugging Face with FlashAttention 2, Llama 3.1 8B, rank 32: most
# tokens of a row that a card of so many GB could train, all logits and embeddings in 32 bits.
CARDS = [(932, 12), (2551, 16), (5789, 24), (12264, 40), (28454, 80)]


@pytest.mark.parametrize(("tokens", "card_gib"), CARDS)
def test_longest_row_of_a_card_takes_all_of_it(tokens, card_gib):
    setup = TrainingSetup(
        technique="qlora",
        tokens=tokens,
        r=32,
        embedding_bytes=4,
        residual_bytes=4,
        adapter_bytes=8,
        logits="full",
    )
    allocated = allocated_bytes(shape("llama-3.1-8b-instruct"), setup)
    assert needs.gpu_process_bytes(allocated) / GIB == pytest.approx(card_gib, rel=0.15)


def straight_line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
    )
    return slope, mean_y - slope * mean_x


def test_adapter_has_r_times_inputs_and_outputs():
    small = shape("smollm2-135m-instruct")
    # What PEFT counts for r=16 on all linear layers of this model.
    setup = TrainingSetup(technique="qlora", tokens=1, r=16)
    assert adapter_parameters(small, setup) == 4_884_480
    assert adapter_parameters(small, TrainingSetup(technique="qlora", tokens=1, r=8)) == 2_442_240


@pytest.mark.parametrize(
    "more",
    [
        {"tokens": 2048},
        {"r": 64},
        {"technique": "lora"},
        {"embedding_bytes": 4},
        {"residual_bytes": 4},
        {"logits": "full"},
        {"double_quantization": False},
        {"optimizer_bytes": 9.0},
    ],
    ids=str,
)
def test_whatever_takes_more_is_counted(more):
    setup = {"technique": "qlora", "tokens": 1024, "r": 16}
    model = shape("qwen2.5-1.5b-instruct")
    assert allocated_bytes(model, TrainingSetup(**{**setup, **more})) > allocated_bytes(
        model, TrainingSetup(**setup)
    )
