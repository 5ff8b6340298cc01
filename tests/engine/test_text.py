"""Text is released early, but never a broken character and never a part of a stop string."""

from __future__ import annotations

import pytest

from appliance.engine.text import TextStream

MIXED = "naïve 日本語 👩‍👩‍👧 done"


def stream(pieces: list[bytes], *stop: str) -> tuple[list[str], TextStream]:
    text = TextStream(stop)
    released = [text.feed(piece) for piece in pieces]
    return [*released, text.finish()], text


def test_characters_cut_by_token_borders_come_out_whole() -> None:
    released, _ = stream([bytes([byte]) for byte in MIXED.encode()])
    assert "".join(released) == MIXED
    assert "\ufffd" not in "".join(released)
    assert sum(1 for piece in released if piece) == len(MIXED)


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    text = TextStream()
    assert text.feed(b"a\xe6\x97") == "a"
    assert text.finish() == "\ufffd"


def test_a_byte_that_can_never_become_a_character_is_replaced_and_the_text_goes_on() -> None:
    released, _ = stream([b"a\xff", b"b"])
    assert "".join(released) == "a\ufffdb"


def test_text_without_a_stop_string_is_released_at_once() -> None:
    text = TextStream(["###"])
    assert text.feed(b"hello") == "hello"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_stop_string_across_pieces_ends_the_text_before_it(size: int) -> None:
    data = b"one STOP two STOP"
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    released, text = stream(pieces, "STOP")
    assert "".join(released) == "one "
    assert text.stopped


def test_what_only_looked_like_a_stop_string_is_released() -> None:
    released, text = stream([b"a S", b"T", b"O", b"Q b"], "STOP")
    assert released == ["a ", "", "", "STOQ b", ""]
    assert not text.stopped


def test_a_stop_string_that_repeats_itself_is_found_at_its_earliest() -> None:
    released, _ = stream([b"a", b"a", b"a", b"b"], "aab")
    assert "".join(released) == "a"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    released, _ = stream([b"say yes or no"], "no", "yes")
    assert "".join(released) == "say "


def test_what_was_held_back_is_released_when_the_answer_ends() -> None:
    released, text = stream([b"end ST"], "STOP")
    assert released == ["end ", "ST"]
    assert not text.stopped


def test_a_stop_string_completed_by_the_replacement_at_the_end_still_stops() -> None:
    released, text = stream([b"ab\xe6"], "b\ufffd")
    assert "".join(released) == "a"
    assert text.stopped


def test_a_stop_string_of_several_bytes_a_character_is_found() -> None:
    released, _ = stream([bytes([byte]) for byte in "次は。終わり。".encode()], "終わり")
    assert "".join(released) == "次は。"


def test_nothing_follows_a_stop_string() -> None:
    text = TextStream(["x"])
    assert text.feed(b"ax") == "a"
    assert text.feed(b"more") == ""
    assert text.finish() == ""
