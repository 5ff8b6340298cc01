"""The simplest rival of a fine-tuned model."""

from __future__ import annotations

from appliance.cli.nearest import NearestNeighbour

EXAMPLES = [
    ("the conveyor belt squeaks", "belt"),
    ("the motor is too hot", "motor"),
    ("sensor 7 shows nothing", "sensor"),
]


def test_most_similar_example_answers():
    nearest = NearestNeighbour(EXAMPLES)
    assert nearest.answer("belt of the conveyor is squeaking") == "belt"
    assert nearest.answer("hot motor!") == "motor"
    assert nearest.answer("SENSOR 7?") == "sensor"
    for question, answer in EXAMPLES:
        assert nearest.answer(question) == answer


def test_question_unlike_all_others_gets_the_first_answer():
    nearest = NearestNeighbour(EXAMPLES)
    for question in ("", "\U0001f600", "zzz"):
        assert nearest.answer(question) == "belt"
