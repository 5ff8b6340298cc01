"""The one error tree: what went wrong, in words that an operator can act on.

Knows nothing of HTTP; `appliance.api.errors` alone gives each kind its status.

    ApplianceError
    ├─ InvalidInput        the caller sent something that cannot be accepted
    ├─ TooLarge            the caller sent more bytes than is allowed
    ├─ SlowClient          the caller stopped sending in the middle of a request
    ├─ NotAuthenticated    no key, or a key that is not known
    ├─ NotPermitted        a known key that may not do this
    ├─ NotFound            no such file, job, model or key
    ├─ WrongState          the thing exists, but not in a state that allows this
    ├─ Busy                try again later
    │  ├─ NoMemory         others hold the device's memory
    │  └─ Unavailable      by no fault of the caller, and whoever asks: stopping, or an engine restarts
    ├─ OutOfDisk           a write found no room; it works again once there is some
    ├─ ConfigurationError  the operator's settings or profile are wrong
    ├─ ChildFailed         a child process ended badly or stopped making progress
    └─ CorruptState        what is on disk is not what was written
"""

from __future__ import annotations

from typing import Any

import msgspec

# What msgspec raises for bytes that are not what they should be: not for their form alone, but for text that
# is no UTF-8, and for nesting without end.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class ApplianceError(Exception):
    """Root of the tree.

    `code` is stable and meant for programs; `message` says what was expected and what was found;
    `param` names the offending field of a request; `next_step` says what to do about it.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class InvalidInput(ApplianceError):
    """The caller sent something that cannot be accepted."""


class TooLarge(ApplianceError):
    """The caller sent more bytes than is allowed."""


class SlowClient(ApplianceError):
    """The caller stopped sending in the middle of a request."""


class NotAuthenticated(ApplianceError):
    """No key, or a key that is not known."""


class NotPermitted(ApplianceError):
    """A known key that may not do this."""


class NotFound(ApplianceError):
    """No such file, job, model or key."""


class WrongState(ApplianceError):
    """The thing exists, but not in a state that allows this."""


class Busy(ApplianceError):
    """Try again later; where it is known when, after `retry_after_seconds`."""

    def __init__(
        self, code: str, message: str, *, retry_after_seconds: float | None = None, **more: str
    ) -> None:
        super().__init__(code, message, **more)
        self.retry_after_seconds = retry_after_seconds


class NoMemory(Busy):
    """Others hold the device's memory. `serving_bytes` are what loaded models hold, and could give back."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        missing_bytes: int = 0,
        serving_bytes: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(code, message, **more)
        self.missing_bytes = missing_bytes
        self.serving_bytes = serving_bytes


class Unavailable(Busy):
    """The appliance cannot do it now, whoever asks: it is being stopped, or an engine is started again."""


class OutOfDisk(ApplianceError):
    """A write found no room; it works again once there is some."""


class ConfigurationError(ApplianceError):
    """The operator's settings or profile are wrong."""


class ChildFailed(ApplianceError):
    """A child process ended badly or stopped making progress."""


class CorruptState(ApplianceError):
    """What is on disk is not what was written."""
