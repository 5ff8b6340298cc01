"""What accelerators there are, asked of NVML and never of torch.cuda.

torch.cuda would hold a device context for the life of the daemon.
"""

from __future__ import annotations

import contextlib

import pynvml


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that NVML reports; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
