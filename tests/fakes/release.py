"""The release child without llama.cpp: a "GGUF" is a small JSON file that the fake engine reads.

Behaviours come from the training data through the adapter, with "release-" before them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from appliance import batch, durable
from appliance.child_records import ReleaseResult, ReleaseSpec
from appliance.records import GgufFile, ReleaseFile
from tests.fakes import behaviour


def main(directory: Path, reporter: batch.Reporter) -> ReleaseResult:
    spec = durable.read_json(directory / batch.SPEC, ReleaseSpec)
    word = _word(spec)
    half_made = directory / "intermediate"
    half_made.mkdir(exist_ok=True)
    (half_made / "float.gguf").write_bytes(b"large")
    if word.startswith("release-"):
        behaviour.act(word.removeprefix("release-"), directory, reporter)
    files = []
    for quantization in spec.quantizations:
        path = directory / f"model-{quantization.value}.gguf"
        load = word if word.startswith("load-") else ""
        durable.write_json(path, {"name": spec.model_name, "load": load, "answer": word})
        reporter.report(f"written:{quantization.value}", f"wrote {path.name}")
        files.append(
            ReleaseFile(
                quantization=quantization,
                path=str(path),
                bytes=path.stat().st_size,
                sha256=durable.sha256_of(path),
            )
        )
    shutil.rmtree(half_made)
    alone = directory / "adapter.gguf"
    alone.write_bytes(b"small")
    adapter_file = GgufFile(path=str(alone), bytes=5, sha256=durable.sha256_of(alone))
    return ReleaseResult(files=tuple(files), seconds=0.1, adapter_file=adapter_file)


def _word(spec: ReleaseSpec) -> str:
    if spec.trained is None:
        return ""
    adapter = Path(spec.trained.adapter_directory) / "adapter.json"
    return str(json.loads(adapter.read_text())["word"])


if __name__ == "__main__":
    batch.run(main)
