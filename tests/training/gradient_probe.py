"""A program for test_base: gradients of an adapter before and after a pass in eval mode, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from appliance.training import base, precision

if __name__ == "__main__":
    torch.manual_seed(0)
    dtype, _ = precision.choose()
    model = base.load_model(Path(sys.argv[1]), "qlora", dtype)
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    tokens = torch.arange(1000, 1024)[None]

    def gradient() -> torch.Tensor:
        """At the embeddings: it has passed through every 4-bit layer."""
        model.train()
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model(inputs_embeds=embedded, labels=tokens).loss.backward()
        assert embedded.grad is not None
        return embedded.grad

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(tokens)
    after = gradient()
    print(
        json.dumps(
            {
                "four_bit_layers": len(layers),
                "repacking_allowed": sum(m.support_avx512bf16_for_cpu for m in layers),
                "packed": sum(
                    hasattr(m.weight.quant_state, "packing_format_for_cpu") for m in layers
                ),
                "gradient": float(before.abs().sum()),
                "equal": torch.equal(before, after),
                "lm_head": type(model.lm_head).__name__,
                "dtype_is_chosen": model.dtype is dtype,
                "nested": all(m.weight.quant_state.nested for m in layers),
                "quant_type": sorted({m.weight.quant_state.quant_type for m in layers}),
            }
        )
    )
