"""Files as users see them: stored if their bytes are accepted, listed in pages, deleted one by one."""

from __future__ import annotations

import hashlib
import io
import threading

import pytest

from appliance.errors import InvalidInput, NotFound
from appliance.records import CheckedRows
from appliance.store import rows


def add(store, content=b"x", filename="f.jsonl", purpose="fine-tune", rows=3):
    return store.files.add(
        io.BytesIO(content),
        filename=filename,
        purpose=purpose,
        limit_bytes=1 << 20,
        check=lambda path: CheckedRows(rows=rows, longest_row_bytes=7),
    )


def content_of(store, file):
    with store.files.open_content(file) as content:
        return content.read()


def blobs(state_dir):
    return [path for path in (state_dir / "blobs").rglob("*") if path.is_file()]


def test_stored_file_is_found_as_it_was(store):
    file = add(store, "é".encode(), filename="Ünï\U0001f600.jsonl")
    assert store.files.get(file.id) == file
    assert file.longest_row_bytes == 7
    assert (file.bytes, file.rows, file.filename) == (2, 3, "Ünï\U0001f600.jsonl")
    assert content_of(store, file) == "é".encode()


def test_refused_bytes_leave_no_file_and_no_blob(store, state_dir):
    def refuse(path):
        assert path.read_bytes() == b"bad"
        raise InvalidInput("invalid_jsonl", "bad")

    with pytest.raises(InvalidInput):
        store.files.add(io.BytesIO(b"bad"), filename="f", purpose="p", limit_bytes=10, check=refuse)
    assert store.files.page(purpose=None, after=None, limit=10, order="desc") == ([], False)
    assert blobs(state_dir) == []


def test_shared_content_survives_the_deletion_of_one_file(store, state_dir):
    first, second = add(store, b"same"), add(store, b"same")
    assert first.id != second.id
    assert len(blobs(state_dir)) == 1
    store.files.delete(first.id)
    assert content_of(store, store.files.get(second.id)) == b"same"
    store.files.delete(second.id)
    assert blobs(state_dir) == []


def test_deleted_file_is_gone(store):
    file = add(store)
    store.files.delete(file.id)
    assert store.files.find(file.id) is None
    for call in (store.files.get, store.files.delete):
        with pytest.raises(NotFound) as caught:
            call(file.id)
        assert caught.value.code == "file_not_found"


def test_adding_and_deleting_the_same_content_at_once_never_loses_it(store):
    failures = []

    def churn() -> None:
        for _ in range(10):
            file = add(store, b"contended")
            try:
                assert content_of(store, file) == b"contended"
                store.files.delete(file.id)
            except BaseException as exc:
                failures.append(exc)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_each_other_without_gap_or_repetition(store, order):
    ids = [add(store, str(n).encode()).id for n in range(7)]
    add(store, b"other", purpose="batch")
    seen, after = [], None
    while True:
        page, more = store.files.page(purpose="fine-tune", after=after, limit=3, order=order)
        seen += [file.id for file in page]
        if not more:
            break
        after = page[-1].id
    assert seen == (ids if order == "asc" else ids[::-1])


def test_page_behind_an_unknown_file_is_empty(store):
    add(store)
    for unknown in ("file-none", "", "' OR 1=1 --"):
        assert store.files.page(purpose=None, after=unknown, limit=9, order="desc") == ([], False)


def test_bytes_of_a_file_that_could_not_be_stored_are_not_kept(store, state_dir, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no row for this one")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "add", fail)
        with pytest.raises(RuntimeError):
            add(store, b"lost")
    assert blobs(state_dir) == []
    kept = add(store, b"kept")
    with monkeypatch.context() as patch:
        patch.setattr(rows, "add", fail)
        with pytest.raises(RuntimeError):
            add(store, b"kept")
    assert content_of(store, kept) == b"kept"


def test_bytes_that_a_kill_left_without_a_file_are_deleted(store, state_dir):
    kept = add(store, b"kept")
    digest = hashlib.sha256(b"lost").hexdigest()
    orphan = state_dir / "blobs" / digest[:2] / digest
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"lost")
    store.files.delete_unused_blobs()
    assert not orphan.exists()
    assert content_of(store, kept) == b"kept"
