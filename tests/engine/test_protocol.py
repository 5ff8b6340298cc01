"""Frames are bounded, and what they say is valid."""

from __future__ import annotations

import math
from typing import Any

import pytest

from appliance.engine import protocol
from appliance.engine.protocol import Cancel, Delta, Generate, Message, Sampling
from appliance.errors import InvalidInput, TooLarge


def generate(content: str) -> Generate:
    return Generate(id=1, prompt=[Message(role="user", content=content)], sampling=Sampling())


def test_a_frame_tells_the_length_of_its_body() -> None:
    frame = protocol.encode(generate("hello 😀"))
    length = protocol.body_length(frame[: protocol.HEADER_BYTES])
    assert length == len(frame) - protocol.HEADER_BYTES
    assert protocol.decode_request(frame[protocol.HEADER_BYTES :]) == generate("hello 😀")


def test_requests_and_replies_are_told_apart() -> None:
    request = protocol.encode(Cancel(id=3))[protocol.HEADER_BYTES :]
    reply = protocol.encode(Delta(id=3, text="x"))[protocol.HEADER_BYTES :]
    assert protocol.decode_request(request) == Cancel(id=3)
    assert protocol.decode_reply(reply) == Delta(id=3, text="x")
    with pytest.raises(ValueError, match="Invalid value"):
        protocol.decode_request(reply)


def test_a_frame_over_the_cap_is_neither_sent_nor_read() -> None:
    with pytest.raises(TooLarge, match=str(protocol.MAX_FRAME_BYTES)):
        protocol.encode(generate("x" * protocol.MAX_FRAME_BYTES))
    header = (protocol.MAX_FRAME_BYTES + 1).to_bytes(protocol.HEADER_BYTES, "big")
    with pytest.raises(TooLarge, match=str(protocol.MAX_FRAME_BYTES + 1)):
        protocol.body_length(header)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        protocol.encode(generate("\ud800"))
    assert caught.value.code == "invalid_text"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 1.1),
        ("top_k", 2**31),
        ("min_p", -1),
        ("presence_penalty", math.inf),
        ("frequency_penalty", -2.5),
        ("repeat_penalty", 0),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: math.nan}),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", ["x" * (protocol.MAX_STOP_CHARACTERS + 1)]),
        ("stop", ["x"] * (protocol.MAX_STOP_STRINGS + 1)),
    ],
)
def test_sampling_outside_its_limits_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Sampling(**{name: value})
    assert caught.value.code == "invalid_value"
    assert caught.value.param == name


def test_sampling_at_its_limits_is_accepted() -> None:
    lowest = {name: low for name, (low, _) in protocol.SAMPLING_LIMITS.items()}
    highest = {name: high for name, (_, high) in protocol.SAMPLING_LIMITS.items()}
    assert len(lowest) == 10
    Sampling(**lowest)  # type: ignore[arg-type]
    Sampling(**highest, stop=["x"] * protocol.MAX_STOP_STRINGS)  # type: ignore[arg-type]
