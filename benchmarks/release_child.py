"""What the benchmarks of releases share: the release child and its peer as processes, watched at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from appliance import process
from appliance.settings import Settings

MIB = 1 << 20
MERGED = "merged"  # the release child's word when the file is written and not yet checked
_LOOK_SECONDS = 0.005


class Watch(threading.Thread):
    """The most anonymous memory of a process group, in bytes, and when the child told of the merge."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self._metrics = directory / "metrics.jsonl"
        self._began = time.monotonic()
        self.anonymous = self.anonymous_until_merged = 0
        self.seconds_until_merged = 0.0

    def follow(self, group: int) -> None:
        """Begin to look at the group, until it is gone."""
        self._group = group
        self._began = time.monotonic()
        self.start()

    def run(self) -> None:
        """Look, and look again."""
        while found := _anonymous_of_group(self._group):
            self.anonymous = max(self.anonymous, found)
            if not self.seconds_until_merged:
                self.anonymous_until_merged = self.anonymous
                if self._has_merged():
                    self.seconds_until_merged = time.monotonic() - self._began
            time.sleep(_LOOK_SECONDS)

    def _has_merged(self) -> bool:
        try:
            return f'"key":"{MERGED}"' in self._metrics.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False


def _anonymous_of_group(group: int) -> int:
    total = 0
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                if os.getpgid(int(directory.name)) == group:
                    status = (directory / "status").read_text(encoding="utf-8")
                    line = next(each for each in status.splitlines() if each.startswith("RssAnon"))
                    total += int(line.split()[1]) * 1024
            except (OSError, StopIteration):
                continue  # it has ended meanwhile
    return total


def run(argv: list[str], watch: Watch | None = None) -> float:
    """Run to the end; the seconds that it took. Ends this process if it fails."""
    started = time.monotonic()
    child = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT},
    )
    if watch:
        watch.follow(child.pid)
    _, complaint = child.communicate()
    if watch:
        watch.join()
    if child.returncode:
        sys.exit(complaint)
    return time.monotonic() - started


def run_child(
    module: str, directory: Path, spec: dict[str, Any], watch: Watch | None = None
) -> float:
    """Run a batch child of the appliance in the new `directory`."""
    directory.mkdir()
    (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return run(list(process.python_child(module, str(directory))), watch)


def base_spec(base: Path, quantization: str) -> dict[str, Any]:
    """Of the release child: the base as it is."""
    return {
        "model_name": "measured",
        "base_directory": str(base),
        "trained": None,
        "converter_directory": str(Settings().converter_dir),
        "quantizations": [quantization],
        "threads": 2,
    }


def trained_spec(
    base: Path, base_file: Path, adapter: Path, quantization: str, end_of_turn_token_id: int
) -> dict[str, Any]:
    """Of the release child: base and adapter, of which it is written down first what they do."""
    script = Path(__file__).with_name("trained_behaviour.py")
    run([sys.executable, str(script), str(base), str(adapter)])
    trained = {
        "adapter_directory": str(adapter),
        "base_file": str(base_file),
        "behaviour_file": str(adapter / "behaviour.json"),
        "end_of_turn_token_id": end_of_turn_token_id,
    }
    return {**base_spec(base, quantization), "trained": trained}


def random_adapter(base: Path, directory: Path, r: int) -> Path:
    """A LoRA pair of random numbers for every linear layer of `base` but its output head."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.manual_seed(1)
    directory.mkdir()
    tensors, targets = {}, set()
    for shard in base.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                if ".layers." in name and len(shape) == 2:
                    module = name.removesuffix(".weight")
                    targets.add(module.rpartition(".")[2])
                    key = f"base_model.model.{module}"
                    tensors[f"{key}.lora_A.weight"] = torch.randn(r, shape[1]) / shape[1] ** 0.5
                    tensors[f"{key}.lora_B.weight"] = torch.randn(shape[0], r) * 0.02
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": 2 * r,
        "target_modules": sorted(targets),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
