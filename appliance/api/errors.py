"""The one place where errors become HTTP: a status for each kind, and OpenAI's envelope around it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import MediaType, Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)

from appliance import durable, errors
from appliance.errors import ApplianceError

logger = logging.getLogger(__name__)

STATUSES: Mapping[type[ApplianceError], HTTPStatus] = {
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.SlowClient: HTTPStatus.REQUEST_TIMEOUT,
    errors.NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    errors.NotPermitted: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    # Not 409: OpenAI's clients repeat a request that ended in a conflict.
    errors.WrongState: HTTPStatus.BAD_REQUEST,
    errors.Busy: HTTPStatus.TOO_MANY_REQUESTS,
    errors.NoMemory: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutOfDisk: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.ConfigurationError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ChildFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.CorruptState: HTTPStatus.INTERNAL_SERVER_ERROR,
}
# Who is told to come back is told when. A second where nobody knows: an answer may end at any moment, and
# OpenAI's clients wait longer at their second try.
RETRY_AFTER_SECONDS = 1
COME_BACK = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
# A training holds it, for minutes at least; OpenAI's clients wait as long as they are told, up to 60 s.
NO_MEMORY_RETRY_AFTER_SECONDS = 30
# msgspec quotes a wrong value in full.
MAX_VALIDATION_CHARACTERS = 500


class ErrorBody(msgspec.Struct):
    """OpenAI's error object; every key is always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(msgspec.Struct):
    """What every failed request answers with."""

    error: ErrorBody


def envelope(exc: ApplianceError) -> Envelope:
    """The error as OpenAI's clients expect it."""
    status = STATUSES[type(exc)]
    return Envelope(ErrorBody(str(exc), _type_of(status), exc.param, exc.code))


def handle_appliance_error(
    request: Request[Any, Any, Any], exc: ApplianceError
) -> Response[Envelope]:
    """Answer with the error's own status."""
    status = STATUSES[type(exc)]
    # Who is told to come back is no failure, and may be many.
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in COME_BACK:
        logger.error("request failed", extra={"path": request.url.path, "code": exc.code})
    return _response(envelope(exc), status, _retry_after_seconds(exc))


def _retry_after_seconds(exc: ApplianceError) -> int:
    if isinstance(exc, errors.NoMemory):
        return NO_MEMORY_RETRY_AFTER_SECONDS
    known = exc.retry_after_seconds if isinstance(exc, errors.Busy) else None
    # Whole seconds, and none too early (RFC 9110).
    return RETRY_AFTER_SECONDS if known is None else max(1, math.ceil(known))


def handle_http_exception(
    request: Request[Any, Any, Any], exc: HTTPException
) -> Response[Envelope]:
    """Answer for what the framework itself refuses: bad JSON, unknown path, wrong method, size."""
    status = HTTPStatus(exc.status_code)
    message, param, code = exc.detail, None, "invalid_request"
    if isinstance(exc, ValidationException):
        message, param = _validation_message(exc)
        code = "invalid_value"
    elif isinstance(exc, NotFoundException | MethodNotAllowedException):
        message = f"Invalid URL ({request.method} {request.url.path})"
        code = "unknown_url"
    elif status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        message, code = "the request's body is larger than is allowed", "request_too_large"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return handle_unexpected(request, exc)
    return _response(Envelope(ErrorBody(message, _type_of(status), param, code)), status)


def handle_recursion(request: Request[Any, Any, Any], exc: RecursionError) -> Response[Envelope]:
    """Answer for a body whose brackets nest so deep that msgspec gives up."""
    message = "the body's values should not nest thousands of levels deep; they do"
    return _bad_body(request, exc, message)


def handle_bad_text(request: Request[Any, Any, Any], exc: UnicodeDecodeError) -> Response[Envelope]:
    """Answer for a body whose text is not UTF-8, which msgspec tells in its own way."""
    message = f"the body's text should be UTF-8; it is not, at byte {exc.start} of a string"
    return _bad_body(request, exc, message)


def handle_os_error(request: Request[Any, Any, Any], exc: OSError) -> Response[Envelope]:
    """Answer for a full disk with its own kind; any other refusal of the system is a fault of ours."""
    if durable.no_room(exc):
        return handle_appliance_error(request, durable.out_of_disk(str(exc.strerror)))
    return handle_unexpected(request, exc)


def handle_unexpected(request: Request[Any, Any, Any], exc: Exception) -> Response[Envelope]:
    """Answer for a fault of ours; the details go to the log alone."""
    logger.error("unexpected error", exc_info=exc, extra={"path": request.url.path})
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    message = "an internal error; see the daemon's log"
    body = ErrorBody(message, _type_of(status), None, "internal_error")
    return _response(Envelope(body), status)


HANDLERS: Mapping[Any, Any] = {
    ApplianceError: handle_appliance_error,
    HTTPException: handle_http_exception,
    RecursionError: handle_recursion,
    UnicodeDecodeError: handle_bad_text,
    OSError: handle_os_error,
    Exception: handle_unexpected,
}


def _bad_body(request: Request[Any, Any, Any], exc: Exception, message: str) -> Response[Envelope]:
    # With its traceback: should it ever come from our own code, it is seen.
    logger.warning("body refused", exc_info=exc, extra={"path": request.url.path})
    status = HTTPStatus.BAD_REQUEST
    return _response(Envelope(ErrorBody(message, _type_of(status), None, "invalid_value")), status)


def _validation_message(exc: ValidationException) -> tuple[str, str | None]:
    if not isinstance(exc.extra, list) or not exc.extra:
        return exc.detail, None
    # Litestar lists {"message", "key", "source"}; the first is the one that msgspec stopped at.
    first = exc.extra[0]
    param, message = first.get("key"), str(first["message"])[:MAX_VALIDATION_CHARACTERS]
    return f"{param}: {message}" if param else message, param


def _type_of(status: HTTPStatus) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_exceeded"
    return "invalid_request_error"


def _response(
    body: Envelope, status: HTTPStatus, retry_after_seconds: int = RETRY_AFTER_SECONDS
) -> Response[Envelope]:
    headers = {"Retry-After": str(retry_after_seconds)} if status in COME_BACK else {}
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)
