"""A fine-tuned model leaves the box in one piece, with everything that is known of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import durable
from appliance.errors import ChildFailed, InvalidInput, NotFound, OutOfDisk, WrongState
from appliance.hardware.fit.machine import GIB
from appliance.hardware.lease import Ledger
from appliance.jobs import export
from appliance.records import ExportForm
from appliance.settings import CHECKOUT, Settings
from appliance.store.store import Store
from tests.daemon_process import BASE, DaemonProcess, ok
from tests.exports.test_modelfile import CHATML
from tests.fakes import PROGRAMS
from tests.test_gguf_header import pair, string

GGUF, ADAPTER = ExportForm.GGUF, ExportForm.ADAPTER


def tokens(*texts: str) -> bytes:
    return pair(
        "tokenizer.ggml.tokens",
        9,
        struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts)),
    )


PAIRS = (
    pair("tokenizer.ggml.model", 8, string("gpt2")),
    pair("tokenizer.chat_template", 8, string(CHATML)),
    pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1)),
    tokens("<|endoftext|>", "<|im_end|>"),
)


@pytest.fixture
def store(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """One with a finished job, whose first file is a GGUF by its head."""
    job = daemon.wait_for_job(daemon.create_job(suffix="out")["id"])
    assert job["status"] == "succeeded"
    daemon.stop()
    file = daemon.state_dir / "jobs" / job["id"] / "release" / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(PAIRS)) + b"".join(PAIRS))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    opened = Store(daemon.state_dir)
    yield opened
    opened.close()


def take(store: Store, destination: Path, *forms: ExportForm, name: str | None = None) -> Path:
    return asyncio.run(
        export.export(
            store,
            Settings(state_dir=store.directory),
            Ledger(store.directory / "leases", 8 * GIB),
            PROGRAMS,
            name or store.catalog.releases()[0].name,
            destination,
            forms,
            lambda lines: None,
        )
    )


def names(directory: Path) -> set[str]:
    return {str(each.relative_to(directory)) for each in directory.rglob("*") if each.is_file()}


def test_files_documents_and_digests_are_there(store: Store, tmp_path: Path) -> None:
    written = take(store, tmp_path / "out", GGUF, ADAPTER)
    documents = {"README.md", "mlbom.cdx.json", "SHA256SUMS"}
    files = {"model-Q4_K_M.gguf", "model-Q8_0.gguf", "Modelfile", "adapter.gguf"}
    assert names(written) == documents | files | {"adapter/adapter.json"}
    lines = (written / "SHA256SUMS").read_text().splitlines()
    digests = dict(reversed(line.split("  ", 1)) for line in lines)
    assert set(digests) == names(written) - {"SHA256SUMS"}
    for name, digest in digests.items():
        assert durable.sha256_of(written / name) == digest
    release = store.catalog.releases()[0]
    assert release.files[1].sha256 == digests["model-Q8_0.gguf"]
    modelfile = (written / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-Q4_K_M.gguf\nTEMPLATE")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    bom = json.loads((written / "mlbom.cdx.json").read_text())
    data = next(each for each in bom["components"] if each["type"] == "data")
    staged = store.jobs_directory / release.job_id / "data" / "train.jsonl"
    assert data["hashes"][0]["content"] == durable.sha256_of(staged)
    assert (
        f"| {data['name']} | {release.job_id} | training | 12 |"
        in (written / "README.md").read_text()
    )
    assert {each.name for each in tmp_path.iterdir()} >= {"out"}
    assert not list(tmp_path.glob(".out*"))


def test_only_what_is_asked_for(store: Store, tmp_path: Path) -> None:
    assert names(take(store, tmp_path / "out", ADAPTER)) == {
        "README.md",
        "mlbom.cdx.json",
        "SHA256SUMS",
        "adapter.gguf",
        "adapter/adapter.json",
    }


def test_what_cannot_be_exported_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="is a base model"):
        take(store, tmp_path / "out", GGUF, name=BASE)
    with pytest.raises(NotFound, match="'nothing' does not exist"):
        take(store, tmp_path / "out", GGUF, name="nothing")
    (tmp_path / "full").mkdir()
    with pytest.raises(WrongState, match="is there already"):
        take(store, tmp_path / "full", GGUF)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutOfDisk, match=f"{tmp_path} should have room for"):
        take(store, tmp_path / "out", GGUF)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_cannot_be_merged_leaves_nothing(store: Store, tmp_path: Path) -> None:
    # The fake trainer's is none.
    with pytest.raises(ChildFailed):
        take(store, tmp_path / "out", ExportForm.MERGED)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    assert store.catalog.releases()


def test_a_model_that_goes_on_from_another_tells_of_both(daemon: DaemonProcess) -> None:
    first = daemon.wait_for_job(daemon.create_job()["id"])
    second = daemon.wait_for_job(daemon.create_job(model=first["fine_tuned_model"])["id"])
    third = daemon.wait_for_job(daemon.create_job(model=second["fine_tuned_model"])["id"])
    assert third["status"] == "succeeded"
    ok(daemon.http.delete(f"/v1/models/{first['fine_tuned_model']}"))
    daemon.stop()
    store = Store(daemon.state_dir)
    release = store.catalog.find_release(third["fine_tuned_model"])
    assert release is not None
    known = export.provenance(store, release)
    store.close()
    assert [job.id for job in known.earlier_jobs] == [second["id"], first["id"]]
    assert [(used.job_id, used.sha256 is None) for used in known.data] == [
        (third["id"], False),
        (second["id"], False),
        (first["id"], True),
    ]
