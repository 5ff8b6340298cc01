"""Recorded devices, replayed: a fake NVML library that the real pynvml loads, and a tree of files.

`python -m tests.hardware.replay` writes docs/devices.md from them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.settings import CHECKOUT

HERE = Path(__file__).parent
DEVICES = sorted((HERE / "devices").glob("*.toml"))
DOCUMENT = CHECKOUT / "docs" / "devices.md"
DRIVER_NOT_LOADED = "!9"
LIBRARY = "libnvidia-ml.so.1"

Recorded = dict[str, Any]


def read(path: Path) -> Recorded:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def library_directory() -> Path:
    """A directory with the fake library, compiled once."""
    directory = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    flags = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    command = ["cc", *flags, "-o", str(directory / LIBRARY), str(HERE / "fake_nvml.c")]
    subprocess.run(command, check=True, timeout=60)
    return directory


def answers(recorded: Recorded) -> str:
    """The fake library's file for a recorded device."""
    nvml = recorded.get("nvml")
    if nvml is None:
        return f"- init {DRIVER_NOT_LOADED}\n"
    gpus = nvml["gpu"]
    lines = [f"- driver {nvml['driver']}", f"- cuda {nvml['cuda']}", f"- count {len(gpus)}"]
    for index, gpu in enumerate(gpus):
        for slot, instance in enumerate(gpu.get("instance", ())):
            lines += _lines(f"{index}m{slot}", instance)
        lines += _lines(str(index), gpu)
        lines.append(f"{index} mig_slots 7")
    return "\n".join(lines) + "\n"


def _lines(device: str, values: Recorded) -> Iterator[str]:
    for key, value in values.items():
        if value != "NOT_SUPPORTED" and key != "instance":
            yield f"{device} {key} {value}"


def write_tree(recorded: Recorded, root: Path) -> None:
    """The files of /proc and /etc that a recorded device has."""
    host, tree = recorded["host"], recorded.get("tree", {})
    flags = "flags" if host["machine"] == "x86_64" else "Features"
    files = {
        "proc/meminfo": f"MemTotal: {host['mem_total_kb']} kB\n"
        f"MemAvailable: {host['mem_available_kb']} kB\n",
        "proc/cpuinfo": f"processor : 0\n{flags} : {host.get('cpu_features', '')}\n",
        "proc/sys/kernel/arch": host["machine"] + "\n",
    }
    if "model" in tree:
        files["proc/device-tree/model"] = tree["model"] + "\0"
    if "compatible" in tree:
        files["proc/device-tree/compatible"] = "".join(f"{each}\0" for each in tree["compatible"])
    if "nv_tegra_release" in tree:
        files["etc/nv_tegra_release"] = tree["nv_tegra_release"] + "\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def profile(recorded: Recorded, directory: Path, *arguments: str) -> Any:
    """What `appliance profile` says of a recorded device, in a process of its own."""
    write_tree(recorded, directory / "root")
    (directory / "nvml").write_text(answers(recorded), encoding="utf-8")
    done = run_profile(directory, "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def profile_of_recorded(path: Path) -> Any:
    """As `profile`, once for each of DEVICES: a process takes half a second."""
    with tempfile.TemporaryDirectory() as directory:
        return profile(read(path), Path(directory))


def run_profile(
    directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`appliance profile` on the device whose files lie in `directory`."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "appliance",
            "profile",
            "--root",
            str(directory / "root"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CHECKOUT,
        env={
            **os.environ,
            "FAKE_NVML": str(directory / "nvml"),
            "LD_LIBRARY_PATH": str(library_directory()),
            "APPLIANCE_STATE_DIR": str(directory / "state"),
            "APPLIANCE_CONFIG": os.devnull,
            "APPLIANCE_PROFILE_OVERRIDE_FILE": os.devnull,
            **environment,
        },
    )


def leaves(values: Recorded, path: str = "") -> Iterator[str]:
    """The dotted paths of all values; of several GPUs the values count once."""
    for key, value in values.items():
        where = f"{path}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{where}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                yield from leaves(each, f"{where}.")
        else:
            yield where


def document() -> str:
    """docs/devices.md: what each recorded device is taken for, and how much of the record has a source."""
    rows = []
    unverified: dict[str, set[str]] = {}
    for path in DEVICES:
        recorded = read(path)
        told = profile_of_recorded(path)
        sources = recorded["sources"].values()
        sourced = sum(source.startswith("sourced: ") for source in sources)
        device, chosen = told["device"], told["profile"]
        gpus = ", ".join(gpu["name"] for gpu in device["nvml"]["gpus"]) or "none"
        gib = told["memory_bytes"] / (1 << 30)
        assumed = {
            name for name, source in recorded["sources"].items() if source.startswith("assumed: ")
        }
        unverified.setdefault(chosen["name"], set()).update(assumed | _untried(chosen))
        rows.append(
            f"| {recorded['title']} | {gpus} | {gib:.1f} | `{chosen['name']}` | {told['reason']} "
            f"| {sourced} of {len(sources)} |"
        )
    lists = (f"- `{name}`: {', '.join(sorted(what))}" for name, what in sorted(unverified.items()))
    return _HEAD + "\n".join(rows) + "\n" + _UNVERIFIED + "\n".join(lists) + "\n"


def _untried(profile: Recorded) -> set[str]:
    """What no test of this project has seen on such a device."""
    if profile["family"] == "cpu":
        return set()
    limits = "the pause at its thermal limit"
    without = "no thermal limit is known, so no job pauses"
    return {
        "training, release and serving on it",
        "the memory that training takes there",
        limits if profile["thermal_limit_celsius"] else without,
    }


_UNVERIFIED = """
## What could not be verified

By profile: values of the records above that are assumed, and what was never run on such a device.

"""

_HEAD = """# Devices and their profiles

Written by `python -m tests.hardware.replay` from the records in `tests/hardware/devices/`, and held true by
a test. Each record is replayed: NVML by a small library in its place that the real `pynvml` loads, `/proc`
and `/etc` as files. A value of a record is marked as sourced, with the place where it was read, or as
assumed. **None of this was tried on the device itself**, but for the plain CPU.

| device | GPU as NVML names it | memory, GiB | profile | why | values with a source |
|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
