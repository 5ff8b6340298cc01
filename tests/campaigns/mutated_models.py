"""Damaged model files, by the hundred thousand, are refused with a clear error or come in: nothing else.

    python -m tests.campaigns.mutated_models --count 100000 --seed 0 --findings DIRECTORY

Each file goes through the whole of the import child's work, many in one process, which is replaced when it
dies. Some are also imported by the command line beside a running daemon, which has to live and answer.
What killed, hung, or was answered by none of the product's errors is kept, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from appliance import gguf_header
from tests.campaigns import mutation, seeds
from tests.daemon_process import RealDaemon

# Longer than anything takes that is not stuck; the product's own bound is the stall timeout.
HANG_SECONDS = 60.0
DAEMON_EVERY = 1000
PROGRESS_EVERY = 1000
# What a file may be answered with besides being imported.
REFUSALS = {
    *("incomplete_model", "invalid_gguf", "invalid_template", "invalid_tokenizer"),
    *("no_chat_template", "no_context_length", "no_end_of_turn", "template_refused"),
    *("template_too_large", "tokenizer_differs", "two_chat_templates", "unreadable_gguf"),
    *("unreadable_model", "unsafe_model_directory", "split_gguf"),
}
# Once a model has come in, it is converted, which may still fail.
SECOND_REFUSALS = {("imported", "conversion_failed"), ("imported", "release_check_failed")}


class Worker:
    """A process that imports one file after the other; started anew when it is gone."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, source: Path, directory: Path) -> str:
        """The outcome's name: "imported", an error's code, "died:STATUS" or "hung"."""
        running = self._running()
        assert running.stdin and running.stdout
        running.stdin.write(json.dumps({"source": str(source), "directory": str(directory)}) + "\n")
        running.stdin.flush()
        ready, _, _ = select.select([running.stdout], [], [], HANG_SECONDS)
        if not ready:
            self._end()
            return "hung"
        line = running.stdout.readline()
        if not line:
            return f"died:{self._reap()}"
        return str(json.loads(line)["outcome"])

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.campaigns.import_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _reap(self) -> int | None:
        """Wait for one that is at its end, and close what led to it; returns its exit status."""
        assert self._process is not None
        with self._process as ended:
            self._process = None
        return ended.returncode


class Damager:
    """Writes the file or directory number N of a seed; the same one each time."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._seed = seed
        gguf, hf = directory / "seed.gguf", directory / "seed"
        seeds.write_gguf(gguf)
        seeds.write_directory(hf)
        self._gguf = gguf.read_bytes()
        self._places = _gguf_places(gguf)
        self._files = {path.name: path.read_bytes() for path in hf.iterdir()}

    def write(self, number: int, path: Path) -> Path:
        """A GGUF file or a directory at `path`, where nothing is."""
        chance = random.Random(f"{self._seed}:{number}")
        if chance.random() < 0.5:
            path = path.with_suffix(".gguf")
            path.write_bytes(self._damaged_gguf(chance))
            return path
        path.mkdir()
        files = {name: self._files[name] for name in sorted(self._files)}
        name = chance.choice(sorted(files))
        files[name] = _damaged(name, files[name], chance)
        for each, content in files.items():
            (path / each).write_bytes(content)
        if chance.random() < 0.05:
            _trick(path, chance)
        return path

    def _damaged_gguf(self, chance: random.Random) -> bytes:
        if chance.random() < 0.15:
            template = mutation.damage_template(seeds.TEMPLATE, chance).encode()
            # As long as before, so that nothing but the template is another.
            template = template[: len(seeds.TEMPLATE)].ljust(len(seeds.TEMPLATE))
            return self._gguf.replace(seeds.TEMPLATE.encode(), template)
        return mutation.damage_bytes(self._gguf, chance, self._places)


def _gguf_places(path: Path) -> list[int]:
    """Where the header's parts begin: counts, pairs, and the table of tensors, each as often."""
    header = gguf_header.read(path)
    places, at = [0, 8, 16], 24
    for pair in header.pairs.values():
        places.append(at)
        at += len(pair)
    step = (header.data_offset - at) // len(header.tensors)
    places += [at + step * i for i in range(len(header.tensors))]
    return [*places, header.data_offset, path.stat().st_size - 48]


def _damaged(name: str, content: bytes, chance: random.Random) -> bytes:
    if name.endswith(".json"):
        return mutation.damage_json(content, chance)
    if name.endswith(".jinja"):
        return mutation.damage_template(content.decode(), chance).encode()
    if chance.random() < 0.5:
        # A header of safetensors: its length, and the text.
        return mutation.damage_bytes(content, chance, range(content.index(b"}}") + 2))
    length = int.from_bytes(content[:8], "little")
    text = mutation.damage_json(content[8 : 8 + length], chance)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _trick(directory: Path, chance: random.Random) -> None:
    """An entry that leads elsewhere, or is something else than a file."""
    entry = directory / chance.choice(
        ("LICENSE", "vocab.json", "model-9.safetensors", "tokenizer.model")
    )
    tricks: tuple[Callable[[], Any], ...] = (
        lambda: entry.symlink_to("/etc/passwd"),
        lambda: entry.symlink_to("/dev/zero"),
        lambda: entry.symlink_to("../../../../etc/shadow"),
        lambda: entry.symlink_to(entry.name),
        lambda: entry.mkdir(),
        lambda: os.mkfifo(entry),
        lambda: (directory / "pytorch_model.bin").write_bytes(b"\x80\x04."),
        lambda: (directory / "modeling_x.py").write_text("raise SystemExit"),
        lambda: (directory / "a\n\x1b[31m.json").write_text("{}"),
    )
    chance.choice(tricks)()


def run(
    count: int, seed: int, findings: Path, *, first: int = 0, daemon_every: int = DAEMON_EVERY
) -> collections.Counter[str]:
    """Outcomes by name; those that should not be leave their files in `findings`."""
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        damager = Damager(work, seed)
        daemon = RealDaemon(work / "state").start() if daemon_every else None
        try:
            with Worker(findings / "worker.log") as worker:
                for number in range(first, first + count):
                    source = damager.write(number, work / "damaged")
                    outcome = worker.ask(source, work / "import")
                    outcomes[outcome] += 1
                    if outcome != "imported" and outcome not in REFUSALS:
                        _keep(source, findings / f"{seed}-{number}-{outcome}")
                    if daemon and number % daemon_every == 0:
                        beside = _import_beside(daemon, source, number)
                        same = beside == outcome or (outcome, beside) in SECOND_REFUSALS
                        outcomes["beside:the same" if same else f"beside:{beside}"] += 1
                    _remove(source)
                    if (number + 1) % PROGRESS_EVERY == 0:
                        print(number + 1, dict(outcomes), flush=True)
        finally:
            if daemon is not None:
                daemon.close()
    return outcomes


def _import_beside(daemon: RealDaemon, source: Path, number: int) -> str:
    """As an operator would, with the daemon at work in the same state directory."""
    importing = ["appliance", "models", "import", str(source), "--name", f"damaged-{number}"]
    done = subprocess.run(
        [sys.executable, "-m", *importing, "--licence", "none", "--origin", "a test"],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert daemon.http.get("/healthz").is_success
    os.kill(daemon.pid, 0)  # Still the process that was started.
    # What the command says when it refuses: "appliance: CODE: why".
    refused = re.search(r"^appliance: (\w+): ", done.stderr, re.MULTILINE)
    return "imported" if done.returncode == 0 else refused[1] if refused else "no word"


def _keep(source: Path, kept: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, kept, symlinks=True)
    else:
        shutil.copyfile(source, kept)


def _remove(source: Path) -> None:
    if source.is_dir():
        shutil.rmtree(source)
    else:
        source.unlink()


def bad(outcomes: collections.Counter[str]) -> dict[str, int]:
    """What should not be among the outcomes."""
    return {
        name: count
        for name, count in outcomes.items()
        if name not in {"imported", "beside:the same", *REFUSALS}
    }


def main() -> int:
    """Run it as asked for; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--daemon-every", type=int, default=DAEMON_EVERY, help="0: never")
    parser.add_argument("--findings", type=Path, required=True)
    asked = parser.parse_args()
    asked.findings.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    outcomes = run(
        asked.count, asked.seed, asked.findings, first=asked.first, daemon_every=asked.daemon_every
    )
    for name, count in outcomes.most_common():
        print(f"{count:8} {name}")
    print(
        f"{asked.count} files in {time.monotonic() - begun:.0f} s; found: {bad(outcomes) or 'nothing'}"
    )
    return 1 if bad(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
