"""Proves that 4-bit training works on this device: one real forward and backward pass through NF4.

Run as a program by the doctor; its last line says what was done, its exit status whether it worked.
"""

from __future__ import annotations

import os
import sys
import time

from appliance import process

HIDDEN = 256
ROWS = 8


def main() -> None:
    """Train one step of a random 4-bit layer and look at what came back."""
    process.die_with_parent()
    os.environ.update(process.OFFLINE_ENVIRONMENT)
    import torch
    from bitsandbytes.nn import Linear4bit

    from appliance.training import precision
    from appliance.training.base import keep_trainable_on_cpu

    device = "cuda" if torch.cuda.is_available() else "cpu"  # cuda: not tried on a GPU
    dtype, _ = precision.choose()
    torch.manual_seed(0)
    layer = Linear4bit(
        HIDDEN,
        HIDDEN,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
    ).to(device)
    keep_trainable_on_cpu(layer)
    started_at = time.monotonic()
    inputs = torch.randn(ROWS, HIDDEN, dtype=dtype, device=device, requires_grad=True)
    layer(inputs).float().square().mean().backward()
    if inputs.grad is None or not bool(inputs.grad.isfinite().all()) or not bool(inputs.grad.any()):
        sys.exit("a gradient should come back through the 4-bit layer; none did")
    milliseconds = (time.monotonic() - started_at) * 1000
    sys.stdout.write(
        f"NF4 forward and backward on {device} in {dtype}, {milliseconds:.0f} ms, "
        f"torch {torch.__version__}\n"
    )


if __name__ == "__main__":
    main()
