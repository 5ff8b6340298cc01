"""The output head and the loss in one, a few positions at a time.

The logits of all positions of a micro-batch, their 32-bit copy and their gradient together are often more
than everything else that a training holds. Here they exist for a tile of positions only, and what the hidden
states need of them is computed at once: the head is frozen, so its weight needs no gradient. No product is
computed twice, and the numbers are those of the head followed by torch's cross entropy.
"""

from __future__ import annotations

from typing import Any

import torch

# Logits of a tile, each with its copy in 32 bits: at most 6 bytes an element, 50 MB.
TILE_ELEMENTS = 1 << 23
# Families whose logits are the product of hidden states and head, and nothing more: no scale, no cap.
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "olmo2"})


def detach(model: Any) -> torch.nn.Module | None:
    """Take the output head off a base model, whose forward pass then ends at the hidden states.

    None, and nothing is changed, if the model does more with its head than to multiply.
    """
    head = model.get_output_embeddings()
    if model.config.model_type not in PLAIN_HEADS or head.bias is not None:
        return None
    model.set_output_embeddings(torch.nn.Identity())
    return head


def summed_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-likelihoods of `labels`, one for each row of `hidden`.

    `hidden` is (positions, hidden size), `weight` (vocabulary, hidden size). Only `hidden` gets a gradient.
    """
    return _SummedLoss.apply(hidden.to(weight.dtype), weight, labels)


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Any:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        rows = max(1, TILE_ELEMENTS // weight.shape[0])
        for start in range(0, len(labels), rows):
            tile = slice(start, start + rows)
            logits = (hidden[tile] @ weight.T).float()
            likelihood = torch.logsumexp(logits, dim=-1)
            total += (likelihood - logits.gather(1, labels[tile].unsqueeze(1)).squeeze(1)).sum()
            # In validation nobody asks for it.
            if ctx.needs_input_grad[0]:
                gradient[tile] = _gradient(logits, likelihood, weight, labels[tile])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


def _gradient(
    logits: torch.Tensor, likelihood: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Of the hidden states: a softmax's is its probabilities, less one at the label. Overwrites `logits`."""
    probabilities = logits.sub_(likelihood.unsqueeze(1)).exp_()
    probabilities[torch.arange(len(labels)), labels] -= 1
    return probabilities.to(weight.dtype) @ weight
