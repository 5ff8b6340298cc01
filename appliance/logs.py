"""Structured logs: one JSON object a line on stdout, for journald and for people with `jq`."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what was passed as `extra` becomes fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode; control characters of foreign text are escaped by JSON."""
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        entry = fields | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:
            # A file name that is not UTF-8 ends up as half a surrogate pair.
            return json.dumps(entry, default=str)


def configure(level: str) -> None:
    """Send everything from `level` up to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Its lines about requests and workers repeat ours.
    logging.getLogger("granian").setLevel(logging.ERROR)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
