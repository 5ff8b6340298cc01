"""A file that comes in parts: whole and in order at the end, or not at all, whatever comes between."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import namedtuple

import pytest

from appliance.errors import Busy, InvalidInput, NotFound, OutOfDisk, TooLarge, WrongState
from appliance.records import CheckedRows
from appliance.store import upload_rows, uploads
from appliance.store.store import Store
from appliance.upload_records import UploadStatus


def begin(store, size, purpose="fine-tune"):
    return store.uploads.create(filename="train.jsonl", purpose=purpose, size_bytes=size)


def add(store, upload, content):
    return store.uploads.add_part(upload.id, io.BytesIO(content)).id


def complete(
    store, upload, parts, md5=None, check=lambda path: CheckedRows(rows=1, longest_row_bytes=2)
):
    return store.uploads.complete(upload.id, parts, md5, check)


def content_of(store, upload):
    with store.files.open_content(store.uploads.file_of(upload)) as content:
        return content.read()


def left(state_dir):
    return list((state_dir / "uploads").rglob("*"))


def files(store):
    return store.files.page(purpose=None, after=None, limit=99, order="asc")[0]


def test_parts_are_joined_in_the_order_that_is_told_and_not_in_which_they_came(store, state_dir):
    upload = begin(store, 3_000_003)
    assert upload.status is UploadStatus.PENDING
    last, first = add(store, upload, b"end"), add(store, upload, b"ab" * 1_500_000)
    whole = b"ab" * 1_500_000 + b"end"
    done = complete(store, upload, [first, last], hashlib.md5(whole).hexdigest().upper())
    assert done.status is UploadStatus.COMPLETED
    assert content_of(store, done) == whole
    file = store.uploads.file_of(done)
    assert (file.filename, file.purpose, file.rows) == ("train.jsonl", "fine-tune", 1)
    assert left(state_dir) == []
    assert store.uploads.get(upload.id) == done


def test_completing_again_gives_the_same_file(store):
    upload = begin(store, 2)
    parts = [add(store, upload, b"a"), add(store, upload, b"b")]
    first = complete(store, upload, parts)
    assert complete(store, upload, parts) == first
    assert len(files(store)) == 1


def test_completing_twice_at_once_gives_one_file(store):
    upload = begin(store, 2)
    parts, found = [add(store, upload, b"a"), add(store, upload, b"b")], []
    checks = []

    def check(path):
        checks.append(path)
        time.sleep(0.05)
        return CheckedRows(rows=1, longest_row_bytes=1)

    threads = [
        threading.Thread(target=lambda: found.append(complete(store, upload, parts, check=check)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    # The second waited, and copied nothing.
    assert len(checks) == 1
    assert store.uploads._completing == {}
    assert len(files(store)) == 1
    assert content_of(store, found[0]) == b"ab"


@pytest.mark.parametrize("number", range(5))
def test_parts_that_are_not_what_was_announced_leave_the_upload_as_it_was(store, number):
    upload, other = begin(store, 2), begin(store, 1)
    a, b, stranger = add(store, upload, b"a"), add(store, upload, b"b"), add(store, other, b"b")
    parts, md5, code = [
        ([a], None, "incomplete_upload"),
        ([a, a], None, "invalid_parts"),
        ([a, stranger], None, "invalid_parts"),
        ([a, "part_x"], None, "invalid_parts"),
        ([a, b], "0" * 32, "md5_mismatch"),
    ][number]
    with pytest.raises(InvalidInput) as caught:
        complete(store, upload, parts, md5)
    assert caught.value.code == code
    assert files(store) == []
    assert content_of(store, complete(store, upload, [a, b])) == b"ab"


def test_bytes_that_are_refused_may_be_completed_otherwise(store, state_dir):
    def refuse(path):
        raise InvalidInput("invalid_jsonl", path.read_text())

    upload = begin(store, 2)
    a, b = add(store, upload, b"a"), add(store, upload, b"b")
    with pytest.raises(InvalidInput, match="ba"):
        complete(store, upload, [b, a], check=refuse)
    assert [path for path in (state_dir / "blobs").rglob("*") if path.is_file()] == []
    assert content_of(store, complete(store, upload, [a, b])) == b"ab"


def test_more_than_was_announced_is_refused_but_for_parts_that_are_sent_again(store, state_dir):
    upload = begin(store, 4)
    for _ in range(2):
        add(store, upload, b"abc")
    kept = len(left(state_dir))
    for content in (b"abc", b"abcde"):
        with pytest.raises(TooLarge) as caught:
            add(store, upload, content)
        assert caught.value.code == "upload_too_large"
    assert len(left(state_dir)) == kept


def test_a_part_has_a_limit(store, monkeypatch):
    monkeypatch.setattr(upload_rows, "MAX_PART_BYTES", 3)
    monkeypatch.setattr(upload_rows, "MAX_PARTS", 2)
    upload = begin(store, 10)
    add(store, upload, b"abc")
    for content in (b"abcd", b""):
        with pytest.raises(TooLarge) as caught:
            add(store, upload, content)
        assert (caught.value.code, caught.value.param) == ("invalid_part_size", "data")
    add(store, upload, b"abc")
    with pytest.raises(TooLarge) as caught:
        add(store, upload, b"a")
    assert caught.value.code == "too_many_parts"


def test_what_has_ended_takes_nothing_more(store, state_dir):
    done, gone = begin(store, 1), begin(store, 1)
    complete(store, done, [add(store, done, b"a")])
    part = add(store, gone, b"a")
    assert store.uploads.cancel(gone.id).status is UploadStatus.CANCELLED
    assert left(state_dir) == []
    for upload in (done, gone):
        with pytest.raises(WrongState):
            add(store, upload, b"a")
        with pytest.raises(WrongState):
            store.uploads.cancel(upload.id)
    with pytest.raises(WrongState):
        complete(store, gone, [part])
    with pytest.raises(NotFound):
        store.uploads.get("upload_x")


def test_cancelled_while_a_part_arrives_leaves_nothing(store, state_dir):
    upload = begin(store, 4)

    class Slow(io.BytesIO):
        def read(self, size=-1):
            if store.uploads.get(upload.id).status is UploadStatus.PENDING:
                store.uploads.cancel(upload.id)
            return super().read(size)

    with pytest.raises(WrongState):
        store.uploads.add_part(upload.id, Slow(b"abcd"))
    assert left(state_dir) == []
    assert list((state_dir / "blobs" / "incoming").iterdir()) == []


def test_cancelled_while_it_is_completed_gives_no_file(store, state_dir):
    upload = begin(store, 1)
    part = add(store, upload, b"a")
    with pytest.raises(WrongState):
        complete(store, upload, [part], check=lambda path: store.uploads.cancel(upload.id) and None)
    assert files(store) == []
    assert left(state_dir) == []


def test_an_upload_expires_with_its_parts(store, state_dir, monkeypatch):
    upload, now = begin(store, 2), time.time()
    monkeypatch.setattr(uploads.time, "time", lambda: now + 3000)
    # Each part gives it more time.
    add(store, upload, b"a")
    assert store.uploads.get(upload.id).expires_at == int(now + 3000) + uploads.LIFETIME_SECONDS
    later = now + 3000 + uploads.LIFETIME_SECONDS + 1
    monkeypatch.setattr(uploads.time, "time", lambda: later)
    with pytest.raises(WrongState, match="expired"):
        add(store, upload, b"b")
    young = begin(store, 2)
    store.uploads.remove_ended()
    assert store.uploads.get(upload.id).status is UploadStatus.EXPIRED
    assert [path.name for path in left(state_dir)] == [young.id]


def test_what_a_kill_left_is_removed_and_an_upload_goes_on_after_a_restart(state_dir):
    store = Store(state_dir)
    upload = begin(store, 2)
    first = add(store, upload, b"a")
    # Between the directory and its row; between the part and its row.
    (state_dir / "uploads" / "upload_lost").mkdir()
    (state_dir / "uploads" / upload.id / "part_lost").write_bytes(b"zz")
    store.close()
    again = Store(state_dir)
    again.uploads.remove_ended()
    assert [path.name for path in (state_dir / "uploads").iterdir()] == [upload.id]
    done = complete(again, upload, [first, add(again, upload, b"b")])
    assert content_of(again, done) == b"ab"
    assert left(state_dir) == []
    again.close()


def test_one_that_is_being_completed_does_not_expire(store, monkeypatch):
    upload = begin(store, 1)
    part, now = add(store, upload, b"a"), time.time()

    def check(path):
        with monkeypatch.context() as patch:
            patch.setattr(uploads.time, "time", lambda: now + 2 * uploads.LIFETIME_SECONDS)
            store.uploads.remove_ended()
        return CheckedRows(rows=1, longest_row_bytes=1)

    assert complete(store, upload, [part], check=check).status is UploadStatus.COMPLETED


def test_room_is_looked_for_before_the_first_byte(store, state_dir, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    begin(store, 300)
    with pytest.raises(OutOfDisk):
        begin(store, 201)
    second = begin(store, 199)
    assert len(left(state_dir)) == 2
    # What has arrived is no longer free; what arrived twice is no gain.
    add(store, second, b"x" * 100)
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: usage(0, 0, 900))
    begin(store, 1)
    with pytest.raises(OutOfDisk):
        begin(store, 1)


def test_uploads_under_way_are_limited(store, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PENDING", 2)
    first = begin(store, 1)
    begin(store, 1)
    with pytest.raises(Busy):
        begin(store, 1)
    store.uploads.cancel(first.id)
    begin(store, 1)
