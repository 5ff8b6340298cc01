"""The official Python client, with nothing changed but its address and its key."""

from __future__ import annotations

import hashlib
import io

import openai
import pytest

from tests.daemon_process import BASE, ok, rows, wait_for


@pytest.fixture
def client(shared_daemon):
    made = openai.OpenAI(
        base_url=f"{shared_daemon.url}/v1", api_key=shared_daemon.key, max_retries=0, timeout=30
    )
    with made:
        yield made


def upload(client):
    return client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")


def ended(client, job_id):
    def probe():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.finished_at else None

    return wait_for(probe, "the job to end")


def ask(client, model, content, **options):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, **options)


def test_whole_way_from_a_file_to_an_answer(client):
    file = client.files.wait_for_processing(upload(client).id)
    assert (file.status, file.purpose, file.bytes) == ("processed", "fine-tune", len(rows()))
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="line-3",
        seed=1,
        metadata={"site": "north"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"appliance": {"quantizations": ["Q8_0"]}},
    )
    job = ended(client, job.id)
    assert (job.status, job.error.code, job.hyperparameters.n_epochs) == ("succeeded", None, 2)
    assert job.method.supervised.hyperparameters.n_epochs == 2
    answer = ask(client, job.fine_tuned_model, "hello")
    assert answer.choices[0].message.content == f"{job.fine_tuned_model}:hello"
    assert answer.usage.total_tokens > 0
    with ask(client, job.fine_tuned_model, "hello", stream=True) as chunks:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == answer.choices[0].message.content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_streaming_helper_gives_the_whole_answer(client):
    messages = [{"role": "user", "content": "a b c"}]
    options = {"include_usage": True}
    with client.chat.completions.stream(
        model=BASE, messages=messages, stream_options=options
    ) as events:
        for _ in events:
            pass
        done = events.get_final_completion()
    assert done.choices[0].message.content == f"{BASE}:abc"
    assert done.usage.prompt_tokens == 3


def test_files_come_back_as_they_went(client):
    data = bytes(range(256)) * 100
    file = client.files.create(file=io.BytesIO(data), purpose="user_data")
    assert client.files.content(file.id).read() == data
    again = client.files.create(file=("again.bin", data), purpose="user_data")
    ids = [each.id for each in client.files.list(purpose="user_data", limit=1)]
    assert ids[:2] == [again.id, file.id]


def test_a_file_in_parts_is_one_as_any_other(client, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(rows())
    md5 = hashlib.md5(rows()).hexdigest()
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=100, md5=md5
    )
    assert (done.status, done.file.filename, done.file.bytes) == (
        "completed",
        "train.jsonl",
        len(rows()),
    )
    assert client.files.content(done.file.id).read() == rows()
    job = client.fine_tuning.jobs.create(model=BASE, training_file=done.file.id)
    assert ended(client, job.id).status == "succeeded"


def test_training_data_in_parts_is_checked_row_by_row(client):
    upload = client.uploads.create(
        bytes=8, filename="t.jsonl", mime_type="text/plain", purpose="fine-tune"
    )
    part = client.uploads.parts.create(upload.id, data=b'{"no": 1')
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=[part.id])
    assert caught.value.code == "invalid_jsonl"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.parts.create(upload.id, data=b"x")
    assert caught.value.code == "upload_not_pending"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bytes": 0}, "invalid_value"),
        ({"bytes": 1 << 40}, "file_too_large"),
        ({"purpose": "anything"}, "invalid_purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "unsupported_parameter"),
    ],
)
def test_uploads_that_cannot_be_are_refused_before_the_first_part(client, changes, code):
    announced = {"bytes": 8, "filename": "f", "mime_type": "x", "purpose": "user_data"} | changes
    with pytest.raises(openai.APIStatusError) as caught:
        client.uploads.create(**announced)
    assert caught.value.code == code


def test_expiry_of_a_file_is_refused_rather_than_ignored(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(
            file=("x.bin", b"x"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    assert caught.value.param == "expires_after"


def test_models_are_listed_and_described(client):
    names = {model.id for model in client.models.list()}
    assert BASE in names
    assert client.models.retrieve(BASE).object == "model"


def test_alias_is_a_model_like_others(client, shared_daemon):
    ok(shared_daemon.http.put("/api/v1/aliases/line-3", json={"model": BASE}))
    assert "line-3" in {model.id for model in client.models.list()}
    assert client.models.retrieve("line-3").alias_of == BASE
    # As of OpenAI's own aliases, the answer tells which model it was.
    assert ask(client, "line-3", "hello").model == BASE
    with ask(client, "line-3", "hello", stream=True) as chunks:
        assert {chunk.model for chunk in chunks} == {BASE}


def test_jobs_and_events_are_paged_through(client):
    file = upload(client)
    jobs = [client.fine_tuning.jobs.create(model=BASE, training_file=file.id) for _ in range(3)]
    listed = []
    for job in client.fine_tuning.jobs.list(limit=2):
        listed.append(job.id)
        if len(listed) == 3:
            break
    assert listed == [job.id for job in reversed(jobs)]
    for job in jobs:
        ended(client, job.id)
    events = list(client.fine_tuning.jobs.list_events(jobs[0].id, limit=3))
    assert len({event.id for event in events}) == len(events) == 12
    assert events[-1].message.startswith("Created fine-tuning job")


def test_job_is_cancelled(client):
    file = client.files.create(file=("t.jsonl", rows("hang")), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.cancel(job.id)
    assert caught.value.code == "invalid_job_status"


def test_several_answers_come_with_their_numbers_and_one_prompt_is_counted(client):
    answer = ask(client, BASE, "one two three", n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [f"{BASE}:onetwothree"] * 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    stream = ask(client, BASE, "slow 3", n=3, stream=True, stream_options={"include_usage": True})
    texts, ends = {}, {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == dict.fromkeys(range(3), "0 1 2 ")
    assert ends == dict.fromkeys(range(3), "stop")
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 9)


def test_text_completions_have_the_clients_types(client):
    made = client.completions.create(model=BASE, prompt=["one two", "three"], logprobs=1)
    assert [choice.text for choice in made.choices] == [f"{BASE}:onetwo", f"{BASE}:three"]
    assert made.choices[1].logprobs.text_offset == [0, len(BASE) + 1]
    assert made.choices[1].logprobs.top_logprobs[1] == {"t0": 0.0, "three": -0.5}
    assert made.usage.total_tokens == 3 + 5
    with client.completions.create(model=BASE, prompt=[11, 12], stream=True) as chunks:
        assert "".join(chunk.choices[0].text for chunk in chunks) == f"{BASE}:1112"


def test_one_that_fails_ends_all_of_several(client):
    with pytest.raises(openai.InternalServerError):
        ask(client, BASE, "crash-at-once", n=2)


def test_log_probabilities_have_the_clients_types(client):
    answer = ask(client, BASE, "né two", logprobs=True, top_logprobs=2)
    first, *others = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == (
        f"{BASE}:",
        list(f"{BASE}:".encode()),
        -0.5,
    )
    assert [each.token for each in others] == ["né", "two"]
    assert [(each.token, each.logprob) for each in first.top_logprobs] == [
        ("t0", 0.0),
        ("t1", -1.0),
    ]
    assert answer.choices[0].logprobs.refusal is None
    stream = ask(client, BASE, "one two", logprobs=True, stream=True)
    found = [
        each.token
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content
    ]
    assert found == [f"{BASE}:", "one", "two"]


ERRORS = [
    (openai.NotFoundError, "model_not_found", lambda client: ask(client, "none", "q")),
    (openai.NotFoundError, "model_not_found", lambda client: client.models.retrieve("a/b")),
    (openai.NotFoundError, "file_not_found", lambda client: client.files.retrieve("file-x")),
    (openai.BadRequestError, "fake", lambda client: ask(client, BASE, "refuse")),
    (openai.BadRequestError, None, lambda client: ask(client, BASE, "q", n=17)),
    (openai.BadRequestError, None, lambda client: ask(client, BASE, "q", temperature=9)),
    (openai.InternalServerError, "fake", lambda client: ask(client, BASE, "error")),
    (openai.InternalServerError, "engine_died", lambda client: ask(client, BASE, "crash")),
    (
        openai.BadRequestError,
        "invalid_jsonl",
        lambda client: client.files.create(file=("t", b"no json"), purpose="fine-tune"),
    ),
    (
        openai.BadRequestError,
        "invalid_file",
        lambda client: client.fine_tuning.jobs.create(model=BASE, training_file="file-x"),
    ),
    (
        openai.AuthenticationError,
        "invalid_api_key",
        lambda client: client.with_options(api_key="sk-wrong").models.list(),
    ),
]


@pytest.mark.parametrize(("kind", "code", "call"), ERRORS, ids=range(len(ERRORS)))
def test_errors_arrive_as_the_clients_own(client, kind, code, call):
    with pytest.raises(kind) as caught:
        call(client)
    assert caught.value.type in ("invalid_request_error", "server_error")
    if code is not None:
        assert caught.value.code == code


def test_errors_are_many():
    assert len(ERRORS) == 11


def test_death_in_the_middle_of_a_stream_is_raised(client):
    with (
        pytest.raises(openai.APIError) as caught,
        ask(client, BASE, "crash", stream=True) as chunks,
    ):
        for _ in chunks:
            pass
    assert caught.value.code == "engine_died"
