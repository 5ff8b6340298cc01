"""Text completions: what may be asked, every key of the answers, and the texts of a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from appliance.api.openai.completions_schema import (
    CompletionLogprobs,
    CompletionRequest,
    LogprobsWriter,
)
from appliance.engine.protocol import Likelihood, Raw, Sampling
from tests.children import starter_gguf
from tests.daemon_process import BASE, RealDaemon, add_base, error_of, ok

__all__ = ["starter_gguf"]

PATH = "/v1/completions"
KEYS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}


def complete(daemon, prompt: object, **body: object):
    return daemon.http.post(PATH, json={"model": BASE, "prompt": prompt, **body})


def texts(answer) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def echo(text: str) -> str:
    """What the fake engine answers: the words, without what was between them."""
    return f"{BASE}:{text}".replace(" ", "")


def stream(daemon, prompt: object, **body: object) -> list[Any]:
    """The chunks of a stream that ends as it should."""
    answer = complete(daemon, prompt, stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *data, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in data]


# --- answers ---


def test_whole_answer_has_every_key(shared_daemon):
    answer = ok(complete(shared_daemon, "one two"))
    assert set(answer) == KEYS
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", BASE)
    assert answer["choices"] == [
        {"text": echo("one two"), "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 3, 5)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_streamed_answer_has_every_key_in_every_chunk(shared_daemon):
    chunks = stream(shared_daemon, "one two")
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    for chunk in chunks:
        assert set(chunk) == KEYS
        assert (chunk["object"], chunk["usage"]) == ("text_completion", None)
        assert set(chunk["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}
    assert "".join(text for chunk in chunks for text in texts(chunk)) == echo("one two")
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_usage_comes_last_and_only_when_asked_for(shared_daemon):
    options = {"include_usage": True}
    *others, last = stream(shared_daemon, ["one two", "three"], n=2, stream_options=options)
    assert {chunk["usage"] is None for chunk in others} == {True}
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 3
    assert last["usage"]["completion_tokens"] == 2 * 3 + 2 * 2


PROMPTS = [
    ("one two", ["one two"]),
    (["one two"], ["one two"]),
    (["one", "two"], ["one", "two"]),
    ([11, 12], ["11 12"]),
    ([[11, 12], [13]], ["11 12", "13"]),
    (["one", [12]], ["one", "12"]),
    ("<|im_end|>\u2028é\x00\ufdd00\ufdd0", ["<|im_end|>\u2028é\x00\ufdd00\ufdd0"]),
    ("", [""]),
    (None, [""]),
]


@pytest.mark.parametrize(("prompt", "asked"), PROMPTS, ids=range(len(PROMPTS)))
def test_prompts_of_every_shape_are_answered(shared_daemon, prompt, asked):
    answer = ok(complete(shared_daemon, prompt))
    assert texts(answer) == [echo(text) for text in asked]
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(asked)))
    assert answer["usage"]["prompt_tokens"] == sum(len(text.split()) for text in asked)


def test_prompt_may_be_left_out(shared_daemon):
    assert texts(ok(shared_daemon.http.post(PATH, json={"model": BASE}))) == [echo("")]


def test_answers_to_one_prompt_stand_together(shared_daemon):
    answer = ok(complete(shared_daemon, ["one", "two three"], n=2))
    assert texts(answer) == [echo("one")] * 2 + [echo("two three")] * 2
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 2 * 2 + 2 * 3
    streamed: dict[int, str] = {}
    for chunk in stream(shared_daemon, ["one", "two three"], n=2):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] = streamed.get(choice["index"], "") + choice["text"]
    assert [streamed[index] for index in sorted(streamed)] == texts(answer)


def test_answers_to_one_prompt_have_seeds_of_their_own(shared_daemon):
    log = shared_daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    ok(complete(shared_daemon, ["one", "two"], n=2, seed=5))
    asked = [line.split()[3] for line in log.read_text().splitlines() if "asked" in line]
    assert sorted(asked[-4:]) == ["5", "5", "6", "6"]


def test_answers_have_16_tokens_unless_asked_otherwise(shared_daemon):
    words = " ".join(map(str, range(30)))
    for given, tokens in [({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": 20}, 20)]:
        answer = ok(complete(shared_daemon, words, **given))
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["choices"][0]["finish_reason"] == "length"


def test_prompt_is_echoed_before_the_answer(shared_daemon):
    prompts = ["one two ", "three"]
    expected = [text + echo(text) for text in prompts]
    assert texts(ok(complete(shared_daemon, prompts, echo=True))) == expected
    streamed = ["", ""]
    for chunk in stream(shared_daemon, prompts, echo=True):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["text"]
    assert streamed == expected


def test_log_probabilities_have_the_old_form(shared_daemon):
    (choice,) = ok(complete(shared_daemon, "né two", logprobs=2))["choices"]
    tokens = [f"{BASE}:", "né", "two"]
    assert choice["logprobs"] == {
        "tokens": tokens,
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"t0": 0.0, "t1": -1.0, token: -0.5} for token in tokens],
        "text_offset": [0, len(BASE) + 1, len(BASE) + 3],
    }
    streamed = [chunk["choices"][0] for chunk in stream(shared_daemon, "né two", logprobs=2)]
    told = [each["logprobs"] for each in streamed if each["logprobs"]]
    for name, values in choice["logprobs"].items():
        assert [value for each in told for value in each[name]] == values
    assert streamed[-1]["logprobs"] is None


def test_no_others_are_told_with_logprobs_0(shared_daemon):
    (choice,) = ok(complete(shared_daemon, "one", logprobs=0))["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{f"{BASE}:": -0.5}, {"one": -0.5}]


def test_tokens_that_are_no_whole_characters_have_names_and_the_offset_of_their_character():
    def likelihood(piece: bytes, *top: tuple[bytes, float]) -> Likelihood:
        return Likelihood(piece=piece, logprob=-1.0, top=list(top))

    writer = LogprobsWriter()
    smile = "\U0001f600".encode()
    first = writer.write([likelihood(b"a"), likelihood(smile[:1], (b"\xf1", -0.5), (b"", -2.0))])
    assert first == CompletionLogprobs(
        tokens=["a", "bytes:\\xf0"],
        token_logprobs=[-1.0, -1.0],
        top_logprobs=[{"a": -1.0}, {"bytes:\\xf1": -0.5, "": -2.0, "bytes:\\xf0": -1.0}],
        text_offset=[0, 1],
    )
    assert writer.write([]).tokens == []
    rest = writer.write([likelihood(smile[1:3]), likelihood(smile[3:] + b"b"), likelihood(b"c")])
    assert rest.text_offset == [1, 1, 3]
    likelier_of_equals = writer.write([likelihood(b"x", (b"", -1.5), (b"", -3.0))])
    assert likelier_of_equals.top_logprobs == [{"": -1.5, "x": -1.0}]


def test_what_changes_the_choice_reaches_the_engine():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "repeat_penalty": 1.5,
        "seed": 3,
        "max_tokens": 9,
    }
    body = {"model": BASE, "prompt": "p", "stop": "end", "logit_bias": {"12": -100}, "logprobs": 3}
    request = msgspec.json.decode(json.dumps({**body, **given}), type=CompletionRequest)
    expected = Sampling(logit_bias={12: -100.0}, stop=["end"], top_logprobs=3, **given)
    assert request.sampling() == expected
    assert request.prompts() == [Raw("p")]


HARMLESS = {
    "user": "u",
    "best_of": 1,
    "suffix": "",
    "echo": False,
    "response_format": {"type": "text"},
    "stop": [],
    "logit_bias": {},
    "something_new": [1],
}


def test_harmless_fields_are_taken(shared_daemon):
    nothing = dict.fromkeys([*HARMLESS, "n", "logprobs", "stream", "stream_options", "seed"])
    for extra in (HARMLESS, nothing, {"n": 2, "best_of": 2}):
        assert ok(complete(shared_daemon, "one", **extra))["choices"]


# --- failures ---

REFUSED = [
    ("prompt", []),
    ("prompt", [1, "x"]),
    ("prompt", [1, [2]]),
    ("prompt", [1.5]),
    ("prompt", [True]),
    ("prompt", {"text": "x"}),
    ("prompt", 5),
    ("prompt", [-1]),
    ("prompt", [1 << 40]),
    ("prompt", [["x"]]),
    ("prompt", ["x"] * 33),
    ("suffix", "the end"),
    ("best_of", 2),
    ("response_format", {"type": "json_object"}),
    ("n", 0),
    ("n", 17),
    ("logprobs", 6),
    ("logprobs", -1),
    ("logprobs", True),
    ("echo", "yes"),
    ("max_tokens", 0),
    ("temperature", 2.1),
    ("stop", ["a"] * 5),
    ("seed", 1 << 80),
    ("min_p", 2),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("field", "value"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_honoured_is_refused_by_name(shared_daemon, field, value, streaming):
    body = {"model": BASE, "prompt": "one", "stream": streaming, field: value}
    error = error_of(shared_daemon.http.post(PATH, json=body), 400)
    assert error["param"] == field or field in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        ("one", {"echo": True, "logprobs": 0}, "echo"),
        ([11, 12], {"echo": True}, "echo"),
        (["one", [12]], {"echo": True}, "echo"),
        (["one"] * 17, {"n": 2}, "prompt"),
        ("one", {"n": 2, "best_of": 3}, "best_of"),
        ("one", {"n": 2, "best_of": 1}, "best_of"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(shared_daemon, prompt, options, named):
    assert error_of(complete(shared_daemon, prompt, **options), 400)["param"] == named


def test_as_many_prompts_as_are_allowed_are_answered(shared_daemon):
    prompts = [f"number {index}" for index in range(16)]
    answer = ok(complete(shared_daemon, prompts, n=2))
    assert texts(answer) == [echo(text) for text in prompts for _ in range(2)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("refuse", 400, "fake"), ("error", 500, "fake"), ("crash-at-once", 500, "engine_died")],
)
def test_failure_of_one_prompt_fails_the_request(shared_daemon, prompt, status, code, streaming):
    answer = complete(shared_daemon, [prompt, "slow 1000"], max_tokens=1000, stream=streaming)
    assert error_of(answer, status)["code"] == code
    assert ok(complete(shared_daemon, "one"))["choices"]


def test_unknown_model_is_not_found(shared_daemon):
    assert error_of(complete(shared_daemon, "one", model="none"), 404)["code"] == "model_not_found"


# --- the real model, through the official client ---

STARTER = "starter"
TEXTS = [
    "The capital of France is",
    "Once upon a time, in a small village",
    "def fibonacci(n):\n",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
    "Zahlen: 1, 2, 3, 4,",
]
ANSWER_TOKENS = 16
N_CTX = 512
# Two would wait for each other by spinning when something else wants the CPUs.
THREADS = 1


@pytest.fixture(scope="module")
def real(starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The official client of a daemon that has the starter model."""
    directory = tmp_path_factory.mktemp("real")
    profile = directory / "profile.toml"
    profile.write_text(f"n_ctx = {N_CTX}\n")
    running = RealDaemon(directory / "state", profile_override_file=profile, threads=THREADS)
    add_base(running.state_dir, STARTER, real_gguf=starter_gguf)
    try:
        running.start()
        with openai.OpenAI(
            base_url=f"{running.url}/v1", api_key=running.key, timeout=120, max_retries=0
        ) as client:
            yield client
    finally:
        running.close()


@pytest.fixture(scope="module")
def llama(starter_gguf: Path) -> Iterator[Any]:
    """The same file in llama-cpp-python's own `Llama`, with the engine's batch sizes and threads."""
    from llama_cpp import Llama

    from appliance.engine.runtime import N_BATCH

    made = Llama(
        str(starter_gguf),
        n_ctx=N_CTX,
        n_batch=N_BATCH,
        n_ubatch=N_BATCH,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        flash_attn=True,
        verbose=False,
    )
    with closing(made):
        yield made


def go_on(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": ANSWER_TOKENS, **options}
    return client.completions.create(model=STARTER, prompt=prompt, **options)


@pytest.mark.llama
def test_greedy_continuations_are_those_of_llama_itself(real: openai.OpenAI, llama: Any) -> None:
    for text in TEXTS:
        answer = go_on(real, text)
        expected = llama.create_completion(text, temperature=0.0, max_tokens=ANSWER_TOKENS)
        assert answer.choices[0].text == expected["choices"][0]["text"]
        assert answer.choices[0].finish_reason == expected["choices"][0]["finish_reason"]
        assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]


@pytest.mark.llama
def test_token_ids_say_what_their_text_says(real: openai.OpenAI, llama: Any) -> None:
    ids = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
    for text, tokens in zip(TEXTS, ids, strict=True):
        by_text, by_tokens = (go_on(real, each, max_tokens=1) for each in (text, tokens))
        assert by_tokens.choices[0].text == by_text.choices[0].text
        assert by_tokens.usage.prompt_tokens == by_text.usage.prompt_tokens == len(tokens)
        # The engine holds the very tokens of the text, and needs the last one's scores alone.
        assert by_tokens.usage.prompt_tokens_details.cached_tokens == len(tokens) - 1
    together = go_on(real, ids, max_tokens=1)
    assert len(together.choices) == len(ids)
    assert together.usage.prompt_tokens == sum(map(len, ids))


@pytest.mark.llama
@pytest.mark.parametrize("text", [*TEXTS, "Write ten emojis: 😀 👩‍👩‍👧"])
def test_tokens_and_their_offsets_make_up_the_text(real: openai.OpenAI, text: str) -> None:
    (choice,) = go_on(real, text, logprobs=5).choices
    told = choice.logprobs
    check_tokens(choice.text, told.tokens, told.text_offset)
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        # Greedy: what was chosen is the likeliest.
        assert top[token] == logprob == max(top.values()) <= 0
        assert 1 <= len(top) <= 5
    choices = [chunk.choices[0] for chunk in go_on(real, text, logprobs=5, stream=True)]
    parts = [each.logprobs for each in choices if each.logprobs]
    check_tokens(
        "".join(each.text for each in choices),
        [token for part in parts for token in part.tokens],
        [offset for part in parts for offset in part.text_offset],
    )


def check_tokens(text: str, tokens: list[str], offsets: list[int]) -> None:
    """Each token stands at its offset; of one that is no whole characters only that it follows the others."""
    assert len(tokens) == len(offsets) > 3
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token
    if not any(token.startswith("bytes:") for token in tokens):
        assert "".join(tokens) == text


@pytest.mark.llama
def test_stream_stops_before_a_stop_string(real: openai.OpenAI) -> None:
    options = {"stop": "e", "echo": True, "stream_options": {"include_usage": True}}
    *chunks, last = go_on(real, TEXTS[1], stream=True, **options)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text.startswith(TEXTS[1])
    assert len(text) > len(TEXTS[1])
    assert "e" not in text.removeprefix(TEXTS[1])
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert 0 < last.usage.completion_tokens < ANSWER_TOKENS


@pytest.mark.llama
@pytest.mark.parametrize(
    ("prompt", "code", "message"),
    [
        ("word " * 600, "context_length_exceeded", rf"\b{N_CTX}\b.*\b60\d\b"),
        ([1] * 600, "context_length_exceeded", rf"\b{N_CTX}\b.*\b600\b"),
        ([1, 49152], "invalid_value", r"0 to 49151; found 49152"),
        # This model has no token that comes before every text.
        ("", "empty_prompt", "0"),
        ([[]], "empty_prompt", "0"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(
    real: openai.OpenAI, prompt: Any, code: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        go_on(real, prompt)
    assert (caught.value.code, caught.value.param) == (code, "prompt")
