"""A control group's limit is the memory there is; page cache is memory that can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import ConfigurationError
from appliance.hardware import host

GIB = 1 << 30


@pytest.fixture
def root(tmp_path):
    """`root(files)`: a tree with 64 GiB, 4 processors, and these files."""

    def write(files: dict[str, str]) -> Path:
        base = {
            "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\n",
            "proc/cpuinfo": "".join(
                f"processor : {n}\nflags : fpu avx2 avx512f\n" for n in range(4)
            ),
            "proc/sys/kernel/arch": "x86_64\n",
        }
        for name, text in {**base, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_without_limits_all_of_the_host_counts(root):
    found = host.read(root({}))
    assert (found.memory_bytes, found.memory_available_bytes) == (64 * GIB, 60 * GIB)
    assert (found.cpus, found.cpu_features) == (4.0, ("avx2", "avx512f"))
    assert not found.memory_limited


V2 = "sys/fs/cgroup/machine/unit"


def test_version_2_limits_count(root):
    found = host.read(
        root(
            {
                "proc/self/cgroup": "0::/machine/unit\n",
                f"{V2}/memory.max": str(8 * GIB),
                f"{V2}/memory.current": str(6 * GIB),
                f"{V2}/memory.stat": f"anon 1\ninactive_file {5 * GIB}\n",
                f"{V2}/cpu.max": "150000 100000\n",
            }
        )
    )
    assert (found.memory_bytes, found.memory_available_bytes) == (8 * GIB, 7 * GIB)
    assert found.cpus == 1.5
    assert found.memory_limited


def test_limit_of_an_outer_group_counts(root):
    found = host.read(
        root(
            {
                "proc/self/cgroup": "0::/machine/unit\n",
                f"{V2}/memory.max": "max\n",
                f"{V2}/cpu.max": "max 100000\n",
                "sys/fs/cgroup/machine/memory.max": str(4 * GIB),
                "sys/fs/cgroup/machine/memory.current": "0",
            }
        )
    )
    assert found.memory_bytes == 4 * GIB
    assert found.cpus == 4.0


def test_group_that_the_container_does_not_show_is_passed_over(root):
    found = host.read(
        root(
            {
                "proc/self/cgroup": "0::/docker/abc\n",
                "sys/fs/cgroup/memory.max": str(2 * GIB),
                "sys/fs/cgroup/memory.current": "0",
            }
        )
    )
    assert found.memory_bytes == 2 * GIB


def test_version_1_limits_count(root):
    unlimited = 9223372036854771712
    found = host.read(
        root(
            {
                "proc/self/cgroup": "4:memory:/a/b\n3:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": str(unlimited),
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/a/memory.stat": f"total_inactive_file {GIB}\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            }
        )
    )
    assert (found.memory_bytes, found.memory_available_bytes) == (3 * GIB, 2 * GIB)
    assert found.cpus == 2.0


def test_group_that_is_full_leaves_nothing(root):
    found = host.read(
        root(
            {
                "proc/self/cgroup": "0::/unit\n",
                "sys/fs/cgroup/unit/memory.max": str(GIB),
                "sys/fs/cgroup/unit/memory.current": str(2 * GIB),
            }
        )
    )
    assert found.memory_available_bytes == 0


def test_garbage_counts_for_nothing(root):
    found = host.read(
        root(
            {
                "proc/self/cgroup": "nonsense\n0::/unit\n",
                "sys/fs/cgroup/unit/memory.max": str(GIB),
                "sys/fs/cgroup/unit/memory.current": "9" * 5000,
                "sys/fs/cgroup/unit/memory.stat": "inactive_file many\ninactive_file\n",
                "sys/fs/cgroup/unit/cpu.max": "100000 0\n",
            }
        )
    )
    assert (found.memory_bytes, found.memory_available_bytes, found.cpus) == (GIB, GIB, 4.0)


def test_host_that_shows_no_memory_is_refused(root):
    with pytest.raises(ConfigurationError, match="MemTotal"):
        host.read(root({"proc/meminfo": "Nothing: 1 kB\nMemTotal: many kB\n"}))


def test_this_machine_is_read():
    found = host.read(Path("/"))
    assert 0 < found.memory_available_bytes <= found.memory_bytes
    assert found.cpus > 0
    assert found.machine in ("x86_64", "aarch64")
