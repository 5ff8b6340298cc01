"""When two answers are the same JSON value."""

from __future__ import annotations

import pytest

from appliance.graders import json_exact_match

SAME = [
    ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}'),
    (" 1 ", "1"),
    ("1", "1.0"),
    ('"\\u00e9"', '"é"'),
    ("null", "null"),
    ("[true, false]", "[true,false]"),
    ("{}", "{ }"),
]
DIFFERENT = [
    ("true", "1"),
    ("0", "false"),
    ('{"a": true}', '{"a": 1}'),
    ("[[0]]", "[[false]]"),
    ("null", "false"),
    ('"1"', "1"),
    ("[1, 2]", "[2, 1]"),
    ("[1]", "[1, 1]"),
    ('{"a": 1}', '{"a": 1, "b": null}'),
    ('{"a": 1} and so on', '{"a": 1}'),
    ("", '{"a": 1}'),
    ("", ""),
    ("not json", "not json"),
    ("NaN", "NaN"),
    ("9" * 5000, "1"),
    ("[" * 100_000, "[]"),
    ('{"a":' * 100_000, "{}"),
    ("\ud800", "1"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_same_value_matches(answer, reference):
    assert json_exact_match(answer, reference) is True
    assert json_exact_match(reference, answer) is True


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_other_value_or_no_json_does_not_match(answer, reference):
    assert json_exact_match(answer, reference) is False


def test_cases_are_many():
    assert (len(SAME), len(DIFFERENT)) == (7, 18)
