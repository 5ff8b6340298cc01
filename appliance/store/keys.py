"""API keys: a key is shown once, at its creation; only its SHA-256 is kept.

A plain hash is enough, because a key is 256 random bits and cannot be guessed from its digest.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from pathlib import Path

from sqlalchemy import delete, select

from appliance import durable
from appliance.errors import CorruptState, NotFound, WrongState
from appliance.records import ApiKey
from appliance.store import rows
from appliance.store.database import Database
from appliance.store.tables import api_keys

SECRET_PREFIX = "sk-"  # noqa: S105  the customary beginning, not a secret
ADMIN_NAME = "admin"
MIN_SECRET_LENGTH = 32
_SECRET = re.compile(rf"[A-Za-z0-9_-]{{{MIN_SECRET_LENGTH},}}")


class KeyStore:
    """API keys by the digest of their secret."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, *, admin: bool = False) -> tuple[ApiKey, str]:
        """Make a key; returns it with its secret, which is not kept."""
        secret = new_secret()
        key = _key(name, secret, admin=admin)
        with self._database.transaction() as connection:
            rows.add(connection, api_keys, key)
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, api_keys, ApiKey, sha256=_digest(secret))

    def list(self) -> list[ApiKey]:
        """Every key, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(select(api_keys).order_by(api_keys.c.position)).all()
        return [rows.to_record(row, ApiKey) for row in found]

    def revoke(self, key_id: str) -> None:
        """Forget a key; the admin key of the key file stays."""
        with self._database.transaction() as connection:
            key = rows.find(connection, api_keys, ApiKey, id=key_id)
            if key is None:
                raise NotFound(
                    "key_not_found",
                    f"No such key: {key_id!r}",
                    param="key_id",
                    next_step="give the id of a key, not its name; GET /api/v1/keys lists them",
                )
            if key.admin:
                raise WrongState(
                    "admin_key",
                    "the admin key cannot be revoked over the API",
                    next_step="stop the daemon, delete admin.key and start it: a new one is made",
                )
            connection.execute(delete(api_keys).where(api_keys.c.id == key_id))

    def ensure_admin(self, key_file: Path) -> None:
        """Make the admin key's file if it is not there, and let no other admin key be valid.

        The file comes first: a cut between the two steps leaves a file whose key the next start stores.
        """
        if not key_file.exists():
            durable.write_durably(key_file, new_secret().encode() + b"\n", mode=0o600)
        secret = _read_secret(key_file)
        with self._database.transaction() as connection:
            if rows.find(connection, api_keys, ApiKey, sha256=_digest(secret)) is None:
                connection.execute(delete(api_keys).where(api_keys.c.admin))
                rows.add(connection, api_keys, _key(ADMIN_NAME, secret, admin=True))


def new_secret() -> str:
    """A fresh secret of 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def _read_secret(key_file: Path) -> str:
    secret = key_file.read_text(encoding="ascii", errors="replace").strip()
    # An empty file would make the empty key the admin's.
    if not _SECRET.fullmatch(secret):
        raise CorruptState(
            "invalid_admin_key",
            f"{key_file} should hold a key of at least {MIN_SECRET_LENGTH} letters, digits, - and _; "
            "it does not",
            next_step="delete it and start the daemon: a new one is made",
        )
    return secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(name: str, secret: str, *, admin: bool) -> ApiKey:
    return ApiKey(
        id=rows.new_id("key-"),
        name=name,
        created_at=int(time.time()),
        sha256=_digest(secret),
        admin=admin,
    )
