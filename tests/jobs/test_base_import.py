"""A base model appears whole, or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import io
import json
import os
import re
import threading

import msgspec
import pytest

from appliance import daemon, durable
from appliance.child_records import ImportSpec
from appliance.cli import models
from appliance.errors import (
    ApplianceError,
    Busy,
    ChildFailed,
    InvalidInput,
    OutOfDisk,
    WrongState,
)
from appliance.hardware import selection
from appliance.hardware.fit import needs, shapes
from appliance.hardware.lease import GIB, Ledger
from appliance.jobs import base_import, deletion
from appliance.jobs.base_import import import_base
from appliance.store.store import Store
from tests.fakes import PROGRAMS
from tests.hardware.fit.test_shapes import LLAMA


@pytest.fixture(autouse=True)
def _children_find_the_fakes(monkeypatch):
    from appliance.settings import CHECKOUT

    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


@pytest.fixture
def store(state_dir):
    opened = Store(state_dir)
    yield opened
    opened.close()


@pytest.fixture
def selected(settings):
    """This box, with 2.5 GiB of which the profile leaves 2 to the operating system."""
    found = selection.select(settings)
    host = msgspec.structs.replace(
        found.device.host, installed_bytes=5 * GIB // 2, memory_bytes=5 * GIB // 2
    )
    device = msgspec.structs.replace(found.device, host=host)
    return msgspec.structs.replace(found, device=device)


@pytest.fixture
def ledger(store, selected):
    return Ledger(store.directory / "leases", selected.machine.device_bytes)


@pytest.fixture
def run(store, settings, selected, ledger, tmp_path):
    """`run(content, name)`: import a source with this content; returns the base and what was told."""

    def through(content: str = "weights", name: str = "tiny"):
        source = tmp_path / "source.gguf"
        source.write_text(content)
        spec = ImportSpec(name=name, source=str(source), licence="mit", origin="a stick")
        told: list[str] = []
        base = asyncio.run(
            import_base(
                store,
                settings,
                selected,
                ledger,
                PROGRAMS,
                spec,
                lambda lines: told.extend(line.message for line in lines),
            )
        )
        return base, told

    return through


def leftovers(store):
    return [path for path in store.temporary_directory.iterdir() if path.is_dir()]


def test_imported_base_is_whole_and_known(store, run):
    base, told = run()
    assert store.catalog.get("tiny") == base
    directory = store.directory / base.directory
    assert (directory / "hf" / "config.json").is_file()
    assert json.loads((directory / "manifest.json").read_text())["name"] == "tiny"
    (file,) = base.files
    content = (store.directory / file.path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == file.sha256
    assert (base.licence, base.source) == ("mit", "a stick")
    assert told == ["imported tiny", "wrote model-Q4_K_M.gguf"]
    assert leftovers(store) == []


def test_sources_are_named_by_digest_and_the_same_bytes_are_kept_once(store, run):
    first, _ = run(name="first")
    second, _ = run(name="second")
    (source,) = first.sources
    assert second.sources == first.sources
    paths = [store.directory / base.directory / "hf" / source.name for base in (first, second)]
    assert paths[0].samefile(paths[1])
    content = paths[0].read_bytes()
    assert (source.bytes, source.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    blob = store.directory / "blobs" / source.sha256[:2] / source.sha256
    assert blob.samefile(paths[0])
    # As at every start.
    store.files.delete_unused_blobs()
    assert blob.exists()

    async def unload(path):
        pass

    asyncio.run(deletion.delete(store, unload, "first"))
    assert blob.exists()
    asyncio.run(deletion.delete(store, unload, "second"))
    assert not blob.exists()


def test_an_uploaded_file_and_the_model_that_was_made_of_it_share_their_bytes(store, run):
    base, _ = run()
    (source,) = base.sources
    path = store.directory / base.directory / "hf" / source.name
    file = store.files.add(
        io.BytesIO(path.read_bytes()),
        filename=source.name,
        purpose="model",
        limit_bytes=1 << 20,
        check=lambda path: None,
    )
    assert file.sha256 == source.sha256
    store.files.delete(file.id)
    assert (store.directory / "blobs" / source.sha256[:2] / source.sha256).samefile(path)


def test_an_import_keeps_within_the_quota(store, run):
    run(name="first")
    used = store.quota.used_bytes()
    store.quota._limit_bytes = used + 10
    with pytest.raises(OutOfDisk, match="may take"):
        run("x" * 50, name="second")
    # The same again takes nothing but its GGUF.
    store.quota._limit_bytes = 2 * used
    run(name="third")
    assert [base.name for base in store.catalog.bases()] == ["first", "third"]
    assert leftovers(store) == []


def test_while_it_is_published_it_is_too_late_to_cancel(
    store, settings, selected, ledger, tmp_path, monkeypatch
):
    source = tmp_path / "source.gguf"
    source.write_text("weights")
    spec = ImportSpec(name="tiny", source=str(source), licence="mit", origin="a stick")
    begun, go_on, publish = threading.Event(), threading.Event(), base_import._publish

    def slowly(*args):
        begun.set()
        assert go_on.wait(10)
        return publish(*args)

    monkeypatch.setattr(base_import, "_publish", slowly)

    async def cancelled_in_the_middle():
        importing = asyncio.create_task(
            import_base(store, settings, selected, ledger, PROGRAMS, spec, lambda lines: None)
        )
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(3):
            importing.cancel()
            await asyncio.sleep(0.02)
            assert not importing.done()
        go_on.set()
        return await importing

    base = asyncio.run(cancelled_in_the_middle())
    assert store.catalog.get("tiny") == base
    assert base_import._is_whole(store, base)
    assert leftovers(store) == []


def test_importing_the_same_again_changes_nothing(store, run):
    first, _ = run()
    again, told = run()
    assert again == first
    assert store.catalog.bases() == [first]
    assert told == ["imported tiny"]
    assert leftovers(store) == []


def test_name_of_another_model_is_refused(store, run):
    first, _ = run("first")
    with pytest.raises(WrongState) as caught:
        run("second")
    assert (caught.value.code, caught.value.param) == ("model_exists", "name")
    assert store.catalog.bases() == [first]
    config = (store.directory / first.directory / "hf" / "config.json").read_text()
    assert "first" in config
    assert leftovers(store) == []


def test_importing_again_restores_what_is_gone_or_damaged(store, run):
    first, _ = run()
    gguf = store.directory / first.files[0].path
    config = store.directory / first.directory / "hf" / "config.json"
    for harm in (gguf.unlink, lambda: gguf.write_text("torn"), lambda: config.write_text("{}")):
        harm()
        again, _ = run()
        assert store.catalog.bases() == [again]
        assert again.sha256 == first.sha256
        assert durable.sha256_of(gguf) == first.files[0].sha256
        assert "weights" in config.read_text()


def test_import_killed_before_the_catalogue_knew_it_can_be_repeated(store, run):
    orphan = store.base_models_directory / "tiny" / "hf"
    orphan.mkdir(parents=True)
    (orphan / "config.json").write_text("of the killed one")
    base, _ = run()
    assert store.catalog.bases() == [base]
    assert "killed" not in (store.directory / base.directory / "hf" / "config.json").read_text()


@pytest.mark.parametrize(("content", "code"), [("refuse", "fake_refusal"), ("crash", "child_died")])
def test_failed_import_leaves_nothing_and_the_earlier_base_stays(store, run, content, code):
    good, _ = run("good")
    with pytest.raises(ChildFailed) as caught:
        run(content)
    assert caught.value.code == code
    assert store.catalog.bases() == [good]
    assert (store.directory / good.directory / "hf" / "config.json").is_file()
    assert leftovers(store) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "A", "ft:x", "a@Q8_0", "a" * 65, "a\n", "ü", "-a", "a b"]
)
def test_bad_name_is_refused(store, run, name):
    with pytest.raises(InvalidInput) as caught:
        run(name=name)
    assert caught.value.param == "name"
    assert store.catalog.bases() == []
    assert list(store.base_models_directory.iterdir()) == []


def test_name_of_an_alias_is_refused_before_anything_is_read(store, run):
    run()
    store.aliases.put("faults", "tiny")
    with pytest.raises(WrongState) as caught:
        run("crash", name="faults")
    assert (caught.value.code, caught.value.param) == ("alias_exists", "name")
    assert [base.name for base in store.catalog.bases()] == ["tiny"]


def test_import_whose_name_an_alias_takes_meanwhile_leaves_nothing(store, run, monkeypatch):
    run()
    monkeypatch.setattr(store.catalog, "check_base_name", lambda name: None)
    store.aliases.put("faults", "tiny")
    with pytest.raises(WrongState) as caught:
        run("weights", name="faults")
    assert caught.value.code == "alias_exists"
    assert [path.name for path in store.base_models_directory.iterdir()] == ["tiny"]
    assert leftovers(store) == []


def test_second_import_at_the_same_time_is_told_to_wait(store, run):
    with (store.temporary_directory / "import.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            run()
    run()


def test_what_a_killed_import_left_is_removed(store, run):
    (store.temporary_directory / "import-dead" / "hf").mkdir(parents=True)
    run()
    assert leftovers(store) == []


def test_missing_source_is_told(store, settings, selected, ledger):
    spec = ImportSpec(name="x", source="/no/such/file", licence="", origin="")
    with pytest.raises(ApplianceError) as caught:
        asyncio.run(
            import_base(store, settings, selected, ledger, PROGRAMS, spec, lambda lines: None)
        )
    assert caught.value.code == "no_such_source"


def test_state_directory_that_an_import_makes_is_the_services_alone(
    settings, tmp_path, monkeypatch
):
    elsewhere = msgspec.structs.replace(settings, state_dir=tmp_path / "new")
    monkeypatch.setattr(daemon, "PROGRAMS", PROGRAMS)
    source = tmp_path / "source.gguf"
    source.write_text("weights")
    models.import_base(elsewhere, source, "tiny", "mit", "a stick")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def small(vocab_size: int) -> str:
    """A model whose conversion takes 0.25 GiB without any vocabulary."""
    return json.dumps({**LLAMA, "vocab_size": vocab_size, "num_hidden_layers": 1})


def test_model_that_is_too_large_to_be_quantized_is_refused_with_both_numbers(store, run):
    with pytest.raises(InvalidInput, match=r"converting tiny needs .* has 0\.50 GiB") as caught:
        run(small(1 << 20))
    assert caught.value.code == "does_not_fit"
    assert store.catalog.bases() == []
    assert leftovers(store) == []


def test_import_takes_its_share_of_the_memory(store, run, ledger):
    source = small(64)
    needed = needs.conversion_bytes(shapes.of_config(json.loads(source)))
    held = ledger.grant("ftjob-7", "training", ledger.capacity_bytes - needed + 1)
    ends = threading.Timer(3, os.close, (held.descriptor,))
    ends.start()
    _, told = run(source)
    waited = re.compile("Waiting for memory: release of import of tiny needs .* held by ftjob-7 .*")
    assert told[0] == "imported tiny"
    assert waited.fullmatch(told[1])
    assert told[2] == "wrote model-Q4_K_M.gguf"
    with ledger.grant("ftjob-7", "training", ledger.capacity_bytes - needed):
        run(small(64).replace("{", "{ ", 1), "other")
    assert ledger.holdings() == []
