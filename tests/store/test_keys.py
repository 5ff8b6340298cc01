"""API keys: shown once, found by their secret, and exactly one admin key at a time."""

from __future__ import annotations

import pytest

from appliance.errors import ApplianceError, NotFound, WrongState


def test_key_is_found_by_its_secret_alone(store):
    key, secret = store.keys.create("app")
    assert store.keys.find(secret) == key
    for other in ("", secret[:-1], secret + " ", key.sha256, key.id, "sk-"):
        assert store.keys.find(other) is None


def test_secret_is_kept_nowhere(store, state_dir):
    _, secret = store.keys.create("app")
    store.close()
    content = b"".join(path.read_bytes() for path in state_dir.rglob("*") if path.is_file())
    assert b"api_keys" in content
    assert secret.encode() not in content


def test_revoked_key_stops_at_once(store):
    key, secret = store.keys.create("app")
    store.keys.revoke(key.id)
    assert store.keys.find(secret) is None
    with pytest.raises(NotFound):
        store.keys.revoke(key.id)


def test_admin_key_is_made_once_and_readable_by_its_owner_alone(store, tmp_path):
    file = tmp_path / "admin.key"
    store.keys.ensure_admin(file)
    store.keys.ensure_admin(file)
    assert file.stat().st_mode & 0o777 == 0o600
    (key,) = store.keys.list()
    assert key.admin
    assert store.keys.find(file.read_text().strip()) == key
    with pytest.raises(WrongState):
        store.keys.revoke(key.id)


def test_new_admin_key_file_ends_the_old_key_and_no_other(store, tmp_path):
    file = tmp_path / "admin.key"
    store.keys.ensure_admin(file)
    old = file.read_text().strip()
    _, app_secret = store.keys.create("admin")
    file.unlink()
    store.keys.ensure_admin(file)
    assert store.keys.find(old) is None
    assert store.keys.find(file.read_text().strip()).admin
    assert not store.keys.find(app_secret).admin


def test_key_of_an_app_called_admin_can_be_revoked(store, tmp_path):
    store.keys.ensure_admin(tmp_path / "admin.key")
    key, _ = store.keys.create("admin")
    store.keys.revoke(key.id)
    assert [each.admin for each in store.keys.list()] == [True]


def test_cut_after_the_file_and_before_the_row_is_mended_by_the_next_start(store, tmp_path):
    file = tmp_path / "admin.key"
    file.write_text("sk-" + "x" * 43 + "\n")
    store.keys.ensure_admin(file)
    assert store.keys.find("sk-" + "x" * 43).admin


@pytest.mark.parametrize("content", [b"", b"\n", b"sk-\n", b"short", b"\xff\xfe" * 40])
def test_admin_key_file_without_a_real_key_is_refused(store, tmp_path, content):
    file = tmp_path / "admin.key"
    file.write_bytes(content)
    with pytest.raises(ApplianceError) as caught:
        store.keys.ensure_admin(file)
    assert caught.value.code == "invalid_admin_key"
    assert str(file) in caught.value.message
    assert store.keys.find("") is None
    assert store.keys.list() == []
