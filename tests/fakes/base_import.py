"""The import child without transformers. The source's text is the behaviour."""

from __future__ import annotations

import json
from pathlib import Path

from appliance import batch, durable
from appliance.child_records import ImportResult, ImportSpec
from appliance.errors import InvalidInput
from appliance.records import SourceFile
from tests.fakes import behaviour


def main(directory: Path, reporter: batch.Reporter) -> ImportResult:
    spec = durable.read_json(directory / batch.SPEC, ImportSpec)
    source = Path(spec.source)
    if source.is_dir():
        # Of a model in several files, the one that says what to do.
        source /= "config.json"
    if not source.is_file():
        raise InvalidInput("no_such_source", f"{source} should be a file; there is none")
    behaviour.act(source.read_text().strip(), directory, reporter)
    hf = directory / "hf"
    hf.mkdir(exist_ok=True)
    config = {"source": source.read_text()}
    if source.read_text().startswith("{"):
        # A configuration that says what memory the model takes.
        config |= json.loads(source.read_text())
    durable.write_json(hf / "config.json", config)
    reporter.report("imported", f"imported {spec.name}")
    return ImportResult(
        architecture="FakeForCausalLM",
        parameters=135_000_000,
        context_length=2048,
        licence=spec.licence,
        sha256=durable.sha256_of_directory(hf),
        sources=tuple(
            SourceFile(name=path.name, bytes=path.stat().st_size, sha256=durable.sha256_of(path))
            for path in hf.iterdir()
        ),
    )


if __name__ == "__main__":
    batch.run(main)
