"""What a device is, as facts: structs only. Sizes are bytes, None means that the device does not say."""

from __future__ import annotations

from typing import Literal

import msgspec

# Whose memory a model has to fit into: the GPU's own, one that CPU and GPU share, or the CPU's.
Family = Literal["discrete", "unified", "cpu"]


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or one MIG instance of it. `memory_bytes` is None if it shares the host's memory."""

    name: str
    uuid: str | None
    memory_bytes: int | None
    compute_capability: str | None
    mig: bool = False


class Nvml(msgspec.Struct, frozen=True, kw_only=True):
    """What NVIDIA's management library answers. `problems` are faults, not gaps that are normal."""

    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()


class Tegra(msgspec.Struct, frozen=True, kw_only=True):
    """A Jetson or Thor: `chip` such as "tegra234", `module` such as "p3767-0003"."""

    model: str
    chip: str
    module: str | None
    l4t: str | None
    jetpack: str | None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The computer around it, as far as this process may use it: control groups count.

    `memory_bytes` is what may be used of `installed_bytes`.
    """

    machine: str
    cpu_features: tuple[str, ...]
    cpus: float
    memory_bytes: int
    memory_available_bytes: int
    installed_bytes: int

    @property
    def memory_limited(self) -> bool:
        """Whether a control group allows less than there is."""
        return self.memory_bytes < self.installed_bytes


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that holds the state."""

    total_bytes: int
    free_bytes: int


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, the facts that a profile is chosen by."""

    host: Host
    disk: Disk
    nvml: Nvml
    tegra: Tegra | None

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that is used: the one with most memory, the first among equals."""
        return max(self.nvml.gpus, key=lambda gpu: gpu.memory_bytes or 0, default=None)

    @property
    def family(self) -> Family:
        """Whose memory a model has to fit into."""
        if self.tegra is not None:
            return "unified"
        if self.gpu is None:
            return "cpu"
        return "unified" if self.gpu.memory_bytes is None else "discrete"

    @property
    def memory_bytes(self) -> int:
        """Total of that memory."""
        if self.family == "discrete" and self.gpu and self.gpu.memory_bytes:
            return self.gpu.memory_bytes
        return self.host.memory_bytes
