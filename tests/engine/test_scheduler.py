"""Many answers at once in one pool of 256 cells: who runs, who waits, and what is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance.engine.protocol import Delta, Finished, Generate, Message, Raw, Sampling
from appliance.errors import ChildFailed, InvalidInput
from tests.engine.asking import add

if TYPE_CHECKING:
    from appliance.engine.runtime import Part, Runtime
    from appliance.engine.scheduler import Event

pytestmark = pytest.mark.llama

SLOTS = 4
END_OF_TURN = 2
MANY_STEPS = 500


class Watched:
    """A scheduler, and the parts of each of its decode calls."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        from appliance.engine.scheduler import Scheduler

        self.runtime = runtime
        self.scheduler = Scheduler(runtime, SLOTS)
        self.calls: list[list[Part]] = []
        decode = runtime.decode

        def watched(parts: list[Part]) -> list[int | None]:
            rows = decode(parts)
            self.calls.append(parts)
            return rows

        monkeypatch.setattr(runtime, "decode", watched)

    def add(
        self,
        request_id: int,
        text: str,
        max_tokens: int = 4,
        system: str = "",
        client: str = "",
    ) -> None:
        messages = [Message(role="system", content=system), Message(role="user", content=text)]
        # Without the end of its turn the model talks on.
        sampling = Sampling(
            temperature=0.0, max_tokens=max_tokens, logit_bias={END_OF_TURN: -100.0}
        )
        request = Generate(id=request_id, prompt=messages, sampling=sampling, client=client)
        add(self.scheduler, request)

    def step(self) -> list[int]:
        """Step once; returns who runs."""
        self.scheduler.step()
        return [generation.id for generation in self.scheduler._running]

    def starts(self) -> list[int]:
        """Step until all is done; returns in which order they started."""
        started: dict[int, None] = {}
        for _ in range(MANY_STEPS):
            if not self.scheduler.busy:
                return list(started)
            started |= dict.fromkeys(self.step())
        raise AssertionError(f"not done in {MANY_STEPS} steps")

    def run(self) -> list[Event]:
        """Step until all is done."""
        events: list[Event] = []
        for _ in range(MANY_STEPS):
            if not self.scheduler.busy:
                return events
            events += self.scheduler.step()
        raise AssertionError(f"not done in {MANY_STEPS} steps")

    def sizes(self) -> list[list[int]]:
        return [[len(part.tokens) for part in call] for call in self.calls]

    def holds_nothing_in_use(self) -> bool:
        sequences = self.scheduler._sequences
        return sequences._tokens.keys() == sequences._idle.keys()


@pytest.fixture
def watched(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(runtime, monkeypatch)


def texts(events: list[Event]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.id] = found.get(event.id, "") + event.text
    return found


def ends(events: list[Event]) -> dict[int, Finished]:
    return {event.id: event for event in events if isinstance(event, Finished)}


def words(count: int, word: str) -> str:
    return " ".join([word] * count)


def test_answers_run_together_and_each_is_told_its_own(watched: Watched) -> None:
    capitals = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo"}
    for index, country in enumerate(capitals):
        watched.add(index, f"What is the capital of {country}?", 12)
    said = texts(watched.run())
    assert [1, 1, 1] in watched.sizes()
    assert len(said) == 3
    for index, capital in enumerate(capitals.values()):
        assert [each for each in capitals.values() if each in said[index]] == [capital]


def test_conversations_in_turn_each_go_on_where_they_were(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one in the pool, and for all on the shelf."""
    from appliance.engine import sequences

    monkeypatch.setattr(sequences, "IDLE_CELLS", 0)
    talks = [[first] * 20 for first in (1000, 2000, 3000)]
    left_to_decode = []
    for turn in range(3):
        for index, talk in enumerate(talks):
            sampling = Sampling(temperature=0.0, max_tokens=4, logit_bias={END_OF_TURN: -100.0})
            request = Generate(id=turn * 3 + index, prompt=Raw(content=talk), sampling=sampling)
            watched.scheduler.add(request, list(talk))
            (generation,) = watched.scheduler._waiting
            (end,) = ends(watched.run()).values()
            left_to_decode.append(len(talk) - end.cached_tokens)
            talks[index] = [*generation.tokens, 7]
            assert watched.scheduler.load().cells == len(generation.tokens) - 1
    # Of each later turn what is new, and the answer's last token.
    assert left_to_decode == [20, 20, 20, 2, 2, 2, 2, 2, 2]
    assert watched.holds_nothing_in_use()


def test_no_more_run_than_there_are_slots_and_the_others_follow_in_order(watched: Watched) -> None:
    for index in range(7):
        watched.add(index, f"Count to {index}.", 3)
    ended = list(ends(watched.run()))
    assert max(map(len, watched.calls)) == SLOTS
    assert ended[:SLOTS] == [0, 1, 2, 3]
    assert sorted(ended) == list(range(7))


def test_long_prompt_is_decoded_beside_answers_and_holds_no_short_one_up(watched: Watched) -> None:
    watched.add(0, "Count.", 10)
    watched.scheduler.step()
    watched.add(1, words(150, "long"))
    watched.add(2, "short")
    watched.calls.clear()
    events = watched.scheduler.step()
    ((answer, long, short),) = watched.sizes()
    assert answer == 1
    assert long >= 64
    assert 1 < short < 64
    # The long prompt is not through yet, and the others answer.
    assert {event.id for event in events} == {0, 2}
    assert max(map(sum, watched.sizes())) <= 2 + 128
    assert ends(watched.run()).keys() == {0, 1, 2}


def test_prompts_that_begin_alike_are_decoded_once(watched: Watched) -> None:
    system = words(60, "rule")
    for index in range(4):
        watched.add(index, f"Question {index}?", 2, system)
    finished = ends(watched.run())
    assert finished[0].cached_tokens == 0
    assert all(finished[index].cached_tokens > 60 for index in (1, 2, 3))
    decoded = sum(map(sum, watched.sizes()))
    assert decoded < finished[0].prompt_tokens + 3 * 15 + 4 * 2


def test_prompt_that_waits_for_another_follows_when_that_is_cancelled(watched: Watched) -> None:
    system = words(60, "rule")
    watched.add(0, words(110, "much"), 2, system)
    watched.scheduler.step()
    watched.scheduler.cancel(0)
    watched.add(1, words(110, "other"), 2, system)
    watched.add(2, "Question?", 2, system)
    watched.scheduler.step()
    watched.scheduler.cancel(1)
    assert ends(watched.run()).keys() == {2}
    assert watched.holds_nothing_in_use()


def test_idle_beginnings_make_room_for_a_new_prompt(watched: Watched) -> None:
    for index in range(5):
        watched.add(index, words(80, str(index)), 2)
        assert ends(watched.run()).keys() == {index}
    assert watched.holds_nothing_in_use()


def test_youngest_goes_on_later_where_cells_run_out_and_says_nothing_twice(
    watched: Watched,
) -> None:
    """Two answers of 125 tokens beside their prompts have no room together in 256 cells."""
    for index, tale in enumerate(["Count to a hundred.", "Name a hundred animals, please."]):
        watched.add(index, tale, 125)
    generations = list(watched.scheduler._waiting)
    events = watched.run()
    finished, told = ends(events), texts(events)
    assert len(generations) == 2
    for index, generation in enumerate(generations):
        answer = generation.tokens[finished[index].prompt_tokens :]
        assert len(answer) == 125
        assert told[index].encode() == b"".join(map(watched.runtime.vocabulary.piece, answer))
    # What the youngest had said was put on the shelf, and not decoded again.
    assert max(max(sizes) for sizes in watched.sizes()[10:]) == 1
    assert watched.holds_nothing_in_use()


def test_nobody_starts_whose_tokens_have_no_room_beside_those_that_run(watched: Watched) -> None:
    """Three that take some 110 tokens each with what they say, and one that would fit, but is later."""
    for index in range(3):
        watched.add(index, words(70, "abc"[index]), 20)
    watched.add(3, "Count.", 3)
    assert [watched.step() for _ in range(15)] == [[0, 1]] * 15
    waiting = []
    while watched.scheduler.busy:
        watched.step()
        waiting.append([each.id for each in watched.scheduler._waiting])
    # Nobody was preempted, or it would have waited once more.
    assert list(dict.fromkeys(map(tuple, waiting))) == [(2, 3), ()]


def test_room_for_what_is_said_is_not_kept_for_longer_than_some_steps(watched: Watched) -> None:
    """Two answers of 125 tokens have no room together, and still begin together."""
    for index in range(2):
        watched.add(index, f"Tell me story {index}.", 125)
    assert watched.step() == [0, 1]
    assert ends(watched.run()).keys() == {0, 1}


def test_one_answer_may_have_the_whole_context(watched: Watched) -> None:
    for index in range(3):
        watched.add(index, "Count.", 3)
    watched.run()
    watched.add(9, "Count from one to a thousand.", 10_000)
    (end,) = ends(watched.run()).values()
    assert end.finish_reason == "length"
    assert end.prompt_tokens + end.completion_tokens == watched.runtime.n_ctx


def test_cancelled_answers_say_no_more_and_leave_their_slots(watched: Watched) -> None:
    for index in range(6):
        watched.add(index, f"Tell me story {index}.", 30)
    watched.scheduler.step()
    for index in (0, 2, 5):
        watched.scheduler.cancel(index)
    watched.scheduler.cancel(77)
    events = watched.run()
    assert ends(events).keys() == {1, 3, 4}
    assert texts(events).keys() == {1, 3, 4}
    assert watched.holds_nothing_in_use()


def test_failed_call_fails_what_ran_and_nothing_that_waited(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences
    from appliance.engine.scheduler import Failure

    # Each that ended would be put on the shelf.
    monkeypatch.setattr(sequences, "IDLE_CELLS", 0)
    for index in range(SLOTS + 1):
        watched.add(index, f"Tell me story {index}.", 3)
    decode, broken = watched.runtime.decode, iter([True])

    def fails_once(parts: list[Part]) -> list[int | None]:
        rows = decode(parts)
        if next(broken, False):
            raise ChildFailed("decode_failed", "as if")
        return rows

    monkeypatch.setattr(watched.runtime, "decode", fails_once)
    events = watched.run()
    failed = [event.id for event in events if isinstance(event, Failure)]
    assert failed == list(range(SLOTS))
    (end,) = ends(events).values()
    # Of what the failed call may have left nothing is used.
    assert (end.id, end.cached_tokens) == (SLOTS, 0)
    assert watched.holds_nothing_in_use()


def test_others_go_on_when_one_finds_no_room_though_alone(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine.runtime import NoCells
    from appliance.engine.scheduler import Failure

    for index in range(2):
        watched.add(index, f"Tell me story {index}.", 3)
    decode, full = watched.runtime.decode, iter([True, True])

    def is_full_at_first(parts: list[Part]) -> list[int | None]:
        if next(full, False):
            raise NoCells("no_cells", "as if")
        return decode(parts)

    monkeypatch.setattr(watched.runtime, "decode", is_full_at_first)
    events = watched.run()
    assert [event.id for event in events if isinstance(event, Failure)] == [0]
    assert ends(events).keys() == {1}
    assert watched.holds_nothing_in_use()


def test_prompt_without_room_is_refused_at_once(watched: Watched) -> None:
    with pytest.raises(InvalidInput, match="256"):
        watched.add(0, words(300, "long"))
    assert not watched.scheduler.busy


def test_text_that_the_model_cannot_write_is_the_callers_fault(watched: Watched) -> None:
    """Its vocabulary lacks a byte of this character."""
    from appliance.engine.json_schema import to_gbnf
    from appliance.engine.scheduler import Failure

    sampling = Sampling(temperature=0.0, grammar=to_gbnf({"const": "\U00050000"}, "schema"))
    prompt = [1000] * 5
    watched.scheduler.add(Generate(id=0, prompt=Raw(content=prompt), sampling=sampling), prompt)
    (failed,) = [each for each in watched.run() if isinstance(each, Failure)]
    assert isinstance(failed.error, InvalidInput)
    assert failed.error.code == "grammar_stuck"
    assert watched.holds_nothing_in_use()


# --- clients ---


def test_client_that_asks_once_waits_behind_no_other_that_asks_for_much(watched: Watched) -> None:
    for index in range(3 * SLOTS):
        watched.add(index, f"Count to {index}.", 3, client="much")
    assert watched.step() == list(range(SLOTS))
    watched.add(99, "Count.", 3, client="once")
    assert watched.starts()[SLOTS] == 99


def test_clients_take_turns_and_each_is_served_in_order(watched: Watched) -> None:
    for index, client in enumerate("aaaabbbc"):
        watched.add(index, f"Count to {index}.", 2, client=client)
    assert watched.starts() == [0, 4, 7, 1, 5, 2, 6, 3]


def test_client_that_asks_again_and_again_overtakes_nobody(watched: Watched) -> None:
    for index, client in enumerate("abcd"):
        watched.add(index, f"Count to {index}.", 2 + 20 * (client != "a"), client=client)
    assert watched.step() == [0, 1, 2, 3]
    # Its next question is there before its answer ends, and before the others'.
    watched.add(4, "Count to 4.", 2, client="a")
    watched.add(10, "Count.", 2, client="waits")
    watched.add(11, "Count.", 2, client="waits too")
    watched.add(5, "Count to 5.", 2, client="a")
    assert watched.starts()[3:] == [10, 11, 4, 5]


def test_turns_are_taken_over_many_steps(watched: Watched) -> None:
    for index in range(3):
        watched.add(index, f"Count to {index}.", 200, client="holds")
    watched.step()
    for index, client in enumerate("aaabb", 10):
        watched.add(index, f"Count to {index}.", 2, client=client)
    # One slot is left, and who has just had it is last in the next round.
    order = [0, 1, 2]
    while len(order) < 8:
        order += [each for each in watched.step() if each not in order]
    assert order[3:] == [10, 13, 11, 14, 12]
    for index in range(3):
        watched.scheduler.cancel(index)


def test_answer_that_was_preempted_takes_no_turn_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine.runtime import NoCells

    watched.add(0, "Tell me a story.", 3, client="a")
    watched.add(1, "Tell me another story.", 3, client="b")
    decode, full = watched.runtime.decode, iter([True])

    def is_full_at_first(parts: list[Part]) -> list[int | None]:
        if next(full, False):
            raise NoCells("no_cells", "as if")
        return decode(parts)

    monkeypatch.setattr(watched.runtime, "decode", is_full_at_first)
    assert watched.step() == [0]
    watched.add(2, "Count.", 3, client="c")
    # It has had its turn, and comes before one that has not.
    while (running := watched.step()) == [0] or not running:
        pass
    assert running == [1, 2]
    watched.run()
