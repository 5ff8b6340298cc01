"""What GPUs NVIDIA's management library knows of.

Every question is asked on its own: Tegra's library answers some with NOT_SUPPORTED, and others with
success and zeros. Neither is a fault there: such a GPU has no memory of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from appliance.hardware.device import Gpu, Nvml

# The device or the driver does not know this question.
_NO_ANSWER = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
    }
)
# Training computes in bfloat16, which the tensor cores of older ones do not know (CUDA C++ Programming Guide,
# "Arithmetic Instructions").
_BFLOAT16_CAPABILITY = (8, 0)
# More fit no machine.
MOST_GPUS = 64
# CUDA's own variable: what a process sees of the GPUs.
VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING_ALL = ("", "-1", "NoDevFiles")
_NO_DRIVER = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})


def read() -> Nvml:
    """Ask about every GPU; without a driver there are none, and that is no problem."""
    try:
        with session() as available:
            return _Reading().all() if available else Nvml()
    except pynvml.NVMLError as exc:
        return Nvml(problems=(f"NVML: {exc}",))


@contextlib.contextmanager
def session() -> Iterator[bool]:
    """NVML, initialized while the block runs; False without a driver. Raises NVMLError if that fails."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        if exc.value not in _NO_DRIVER:
            raise
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class _Reading:
    """One pass over the library; collects what goes wrong on the way."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def all(self) -> Nvml:
        cuda = self._ask("CUDA version", pynvml.nvmlSystemGetCudaDriverVersion_v2)
        gpus = tuple(
            gpu
            for index in range(min(self._ask("count", pynvml.nvmlDeviceGetCount) or 0, MOST_GPUS))
            for gpu in self._gpus(index)
        )
        return Nvml(
            driver=self._ask("driver version", pynvml.nvmlSystemGetDriverVersion),
            # 1000 times the major version and 10 times the minor one (nvml.h).
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            gpus=tuple(self._visible(gpus)),
            problems=tuple(self._problems),
        )

    def _visible(self, gpus: tuple[Gpu, ...]) -> Iterator[Gpu]:
        """Those that CUDA_VISIBLE_DEVICES names by UUID, or by its beginning; none if it hides all.

        Its numbers do not mean the same to NVML as to CUDA.
        """
        named = os.environ.get(VISIBLE)
        if named is None or named in HIDING_ALL:
            yield from gpus if named is None else ()
            return
        wanted = tuple(each.strip() for each in named.split(","))
        if not all(each.startswith(("GPU-", "MIG-")) for each in wanted):
            self._problems.append(
                f"{VISIBLE} should name GPUs by their UUIDs (nvidia-smi -L); it is {named!r}, and is ignored"
            )
            yield from gpus
            return
        found = [gpu for gpu in gpus if (gpu.uuid or "").startswith(wanted)]
        if not found:
            self._problems.append(f"{VISIBLE} names no GPU that is there: {named!r}")
        yield from found

    def _gpus(self, index: int) -> Iterator[Gpu]:
        who = f"GPU {index}"
        handle = self._ask(f"{who}: handle", pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return
        mode = self._ask(f"{who}: MIG mode", pynvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            yield from self._gpu(who, handle, mig=False)
            return
        # Work runs on its instances alone, not on the whole.
        slots = self._ask(f"{who}: MIG count", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        instances = [each for slot in range(slots) for each in self._instance(who, handle, slot)]
        if not instances:
            self._problems.append(f"{who}: MIG is on, but no instance has been made")
        yield from instances

    def _instance(self, who: str, handle: Any, slot: int) -> Iterator[Gpu]:
        try:
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except pynvml.NVMLError as exc:
            if exc.value != pynvml.NVML_ERROR_NOT_FOUND:
                self._problems.append(f"{who}: MIG instance {slot}: {exc}")
            return
        yield from self._gpu(f"{who}: MIG instance {slot}", instance, mig=True)

    def _gpu(self, who: str, handle: Any, *, mig: bool) -> Iterator[Gpu]:
        before = len(self._problems)
        memory = self._ask(f"{who}: memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
        if len(self._problems) > before:
            # Lost, or in need of a reset: not to be taken for one that shares the host's memory.
            return
        capability = self._ask(
            f"{who}: compute capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle
        )
        if capability and tuple(capability) < _BFLOAT16_CAPABILITY:
            self._problems.append(
                f"{who}: compute capability {capability[0]}.{capability[1]} has no bfloat16, which training "
                "computes in: slow at best"
            )
        yield Gpu(
            name=self._ask(f"{who}: name", pynvml.nvmlDeviceGetName, handle) or "unknown",
            uuid=self._ask(f"{who}: UUID", pynvml.nvmlDeviceGetUUID, handle),
            memory_bytes=(memory.total or None) if memory else None,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
            mig=mig,
        )

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None; a fault is noted, a question that the device does not know is not."""
        try:
            return call(*arguments)
        except pynvml.NVMLError as exc:
            if exc.value not in _NO_ANSWER:
                self._problems.append(f"{what}: {exc}")
        except UnicodeDecodeError as exc:
            self._problems.append(f"{what}: not UTF-8: {exc}")
        return None
