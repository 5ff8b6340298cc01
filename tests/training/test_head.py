"""Head and loss in tiles give what they give at once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from appliance.training import head  # noqa: E402

pytestmark = pytest.mark.torch

POSITIONS, HIDDEN, VOCABULARY = 37, 16, 101


def inputs(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN).to(dtype)
    return hidden, weight, torch.randint(0, VOCABULARY, (POSITIONS,))


@pytest.mark.parametrize("rows_of_a_tile", [1, 5, 36, 37, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_loss_and_gradient_are_those_of_cross_entropy(
    monkeypatch, rows_of_a_tile, dtype, tolerance
):
    monkeypatch.setattr(head, "TILE_ELEMENTS", rows_of_a_tile * VOCABULARY)
    hidden, weight, labels = inputs(getattr(torch, dtype))
    loss = head.summed_loss(hidden, weight, labels)
    (loss / 3).backward()
    ours, hidden.grad = hidden.grad, None
    logits = (hidden @ weight.T).float()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    (expected / 3).backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours, hidden.grad, rtol=tolerance, atol=tolerance)


def test_tile_that_is_smaller_than_a_row_of_logits_still_holds_one(monkeypatch):
    monkeypatch.setattr(head, "TILE_ELEMENTS", 1)
    hidden, weight, labels = inputs(torch.float32)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(head.summed_loss(hidden, weight, labels), expected)


def test_no_position_no_loss():
    _, weight, _ = inputs(torch.float32)
    empty = torch.empty(0, HIDDEN, requires_grad=True)
    loss = head.summed_loss(empty, weight, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert (float(loss.detach()), empty.grad.shape) == (0.0, empty.shape)


def small(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", sorted(head.PLAIN_HEADS))
def test_plain_model_without_its_head_ends_at_what_the_head_is_given(family):
    model = small(family).eval()
    ids = torch.arange(6).unsqueeze(0)
    logits = model(ids).logits
    taken = head.detach(model)
    assert taken is not None
    torch.testing.assert_close(taken(model(ids).logits), logits)


def test_head_that_does_more_than_multiply_stays():
    # Granite divides its logits by a constant of its own.
    model = small("granite")
    before = model.get_output_embeddings()
    assert head.detach(model) is None
    assert model.get_output_embeddings() is before
