"""The body of a new job: OpenAI's limits, and each fault by its field."""

from __future__ import annotations

import typing

import msgspec
import pytest
from openai.types.fine_tuning import job_create_params

from appliance.jobs.request import FineTuningRequest

MINIMAL = {"model": "m", "training_file": "f"}


def supervised(**values: object) -> dict[str, object]:
    return {"type": "supervised", "supervised": {"hyperparameters": values}}


BAD = [
    ("model", ""),
    ("model", None),
    ("model", 5),
    ("model", "x" * 257),
    ("training_file", ""),
    ("training_file", "x" * 129),
    ("training_file", ["file-1"]),
    ("validation_file", ""),
    ("suffix", ""),
    ("suffix", "x" * 65),
    ("suffix", "a b"),
    ("suffix", "a/b"),
    ("suffix", "a:b"),
    ("suffix", "a@Q8_0"),
    ("suffix", "../.."[:5]),
    ("suffix", "ü"),
    ("suffix", "abc\n"),
    ("suffix", "a\x00"),
    ("seed", -1),
    ("seed", 2147483648),
    ("seed", 1 << 70),
    ("seed", 1.5),
    ("seed", "1"),
    ("metadata", []),
    ("metadata", {"k": 1}),
    ("metadata", {"k": None}),
    ("metadata", {"k" * 65: "v"}),
    ("metadata", {"k": "v" * 513}),
    ("metadata", {str(n): "v" for n in range(17)}),
    ("integrations", [{"type": "wandb", "wandb": {"project": "p"}}]),
    ("method", {"type": "dpo"}),
    ("method", {"type": "supervised", "dpo": {}}),
    ("method", supervised(n_epochs=0)),
    ("method", supervised(n_epochs=51)),
    ("method", supervised(n_epochs="many")),
    ("method", supervised(n_epochs=True)),
    ("method", supervised(batch_size=0)),
    ("method", supervised(batch_size=257)),
    ("method", supervised(learning_rate_multiplier=0)),
    ("method", supervised(learning_rate_multiplier=-1)),
    ("method", supervised(learning_rate_multiplier=1e6)),
    ("method", supervised(beta=0.1)),
    ("hyperparameters", {"n_epochs": 0}),
    ("appliance", {"technique": "full"}),
    ("appliance", {"quantizations": []}),
    ("appliance", {"quantizations": ["Q4_0"]}),
    ("appliance", {"quantizations": ["Q8_0", "Q8_0"]}),
    ("appliance", {"policy": "window"}),
    ("appliance", {"validation_fraction": 0.6}),
    ("appliance", {"validation_fraction": -0.1}),
    ("appliance", {"nonsense": 1}),
    ("appliance", {"advanced": {"learning_rate": 0}}),
    ("appliance", {"advanced": {"learning_rate": 2}}),
    ("appliance", {"advanced": {"r": 0}}),
    ("appliance", {"advanced": {"r": 1025}}),
    ("appliance", {"advanced": {"max_length": 7}}),
    ("appliance", {"advanced": {"lora_dropout": 1}}),
    ("appliance", {"advanced": {"lr_scheduler_type": "polynomial"}}),
    ("appliance", {"advanced": {"output_dir": "/etc"}}),
    ("nonsense", 1),
]


def decode(body: dict[str, object]) -> FineTuningRequest:
    return msgspec.json.decode(msgspec.json.encode(body), type=FineTuningRequest)


@pytest.mark.parametrize(("field", "value"), BAD, ids=range(len(BAD)))
def test_bad_field_is_refused(field, value):
    with pytest.raises(msgspec.ValidationError):
        decode({**MINIMAL, field: value})


def test_bad_fields_are_many():
    assert len(BAD) == 60
    assert {field for field, _ in BAD} >= set(FineTuningRequest.__struct_fields__)


def test_hyperparameters_in_both_places_are_refused():
    with pytest.raises(msgspec.ValidationError, match="not in both"):
        decode({**MINIMAL, "hyperparameters": {"n_epochs": 2}, "method": supervised(n_epochs=3)})


GOOD = [
    {},
    {"suffix": "line-3_v1.2"},
    {"seed": 0},
    {"seed": 2147483647},
    {"metadata": {str(n) * 32: "ü" * 512 for n in range(10, 26)}},
    {"integrations": []},
    {"method": {"type": "supervised"}},
    {"method": supervised(n_epochs=50, batch_size="auto", learning_rate_multiplier=0.1)},
    {"appliance": {"advanced": {"lora_dropout": 0}}},
]


@pytest.mark.parametrize("body", GOOD, ids=range(len(GOOD)))
def test_good_body_is_accepted(body):
    decode({**MINIMAL, **body})


def test_whatever_openai_calls_nullable_may_be_null():
    hints = typing.get_type_hints(job_create_params.JobCreateParams)
    nullable = [name for name, kind in hints.items() if type(None) in typing.get_args(kind)]
    assert {"suffix", "seed", "validation_file", "metadata", "integrations"} <= set(nullable)
    decode({**MINIMAL, **dict.fromkeys(nullable)})
