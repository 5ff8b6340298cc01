"""Files and models together keep within a limit, and the same bytes count once."""

from __future__ import annotations

import io
import os

import pytest

from appliance.errors import OutOfDisk
from appliance.store.quota import Quota
from appliance.store.store import Store


def test_what_has_several_names_counts_once(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b" / "deep"
    first.mkdir()
    second.mkdir(parents=True)
    (first / "x").write_bytes(b"x" * 100)
    os.link(first / "x", second / "same")
    (second / "y").write_bytes(b"y" * 11)
    (second / "dangling").symlink_to("nowhere")
    quota = Quota([first, tmp_path / "b"], 200)
    assert quota.used_bytes() == 111 + len("nowhere")
    quota.check(82)
    with pytest.raises(OutOfDisk) as caught:
        quota.check(83)
    assert caught.value.code == "quota_exceeded"


def test_without_a_limit_nothing_is_looked_at(tmp_path):
    Quota([tmp_path / "nowhere"], 0).check(1 << 60)


def test_files_and_uploads_keep_within_it(state_dir):
    store = Store(state_dir, quota_bytes=100)

    def add(size):
        return store.files.add(
            io.BytesIO(os.urandom(size)),
            filename="f",
            purpose="model",
            limit_bytes=1000,
            check=lambda path: None,
        )

    file = add(60)
    with pytest.raises(OutOfDisk, match="may take"):
        add(41)
    store.uploads.create(filename="f", purpose="model", size_bytes=30)
    with pytest.raises(OutOfDisk, match="may take"):
        store.uploads.create(filename="f", purpose="model", size_bytes=11)
    assert store.quota.used_bytes() == 60
    store.files.delete(file.id)
    add(41)
    store.close()
