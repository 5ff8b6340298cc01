"""The whole job with every real part: daemon, children, starter model, official client, and a kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.children import starter_gguf
from tests.daemon_process import RealDaemon, group_members, ok, wait_for

__all__ = ["starter_gguf"]

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.llama, pytest.mark.timeout(900)]

BASE = "smollm2-135m-instruct"
COLOURS = ("red", "green", "blue", "white")
JOB_DEADLINE_SECONDS = 400.0
# What the README promises of a daemon that dies.
CHILDREN_GONE_SECONDS = 5.0


@pytest.fixture(scope="module")
def daemon(starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    """A daemon with the imported starter model; a checkpoint after every step."""
    running = RealDaemon(tmp_path_factory.mktemp("whole") / "state", checkpoint_seconds=0)
    running.import_base(starter_gguf, BASE)
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def client(daemon: RealDaemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.key, timeout=120)


def test_a_base_model_comes_over_the_network_in_parts(
    daemon: RealDaemon, client: openai.OpenAI, starter_gguf: Path
) -> None:
    file = client.uploads.upload_file_chunked(
        file=starter_gguf,
        mime_type="application/octet-stream",
        purpose="model",  # type: ignore[arg-type]
        part_size=16 << 20,
    ).file
    assert file is not None
    assert file.bytes == starter_gguf.stat().st_size
    wanted = {"name": "sent", "licence": "Apache-2.0", "origin": "a test", "files": [file.id]}
    asked = ok(daemon.http.post("/api/v1/imports", json=wanted))
    client.files.delete(file.id)

    def ended() -> Any:
        found = ok(daemon.http.get(f"/api/v1/imports/{asked['id']}"))
        return found if found["finished_at"] else None

    assert wait_for(ended, "the import to end")["status"] == "succeeded"
    bases = {each["name"]: each for each in ok(daemon.http.get("/api/v1/models"))["base_models"]}
    # The same model as the one that was imported on the box.
    assert bases["sent"]["sha256"] == bases[BASE]["sha256"]
    assert ask(client, "sent", "What is the colour of box 7?")
    client.models.delete("sent")


def test_killed_in_mid_training_a_job_ends_with_the_weights_of_one_that_was_left_alone(
    daemon: RealDaemon, client: openai.OpenAI
) -> None:
    file = client.files.create(file=("colours.jsonl", rows()), purpose="fine-tune")

    undisturbed = finish(client, start(client, file.id).id)
    killed = start(client, file.id)
    training = training_process(daemon, killed.id)
    wait_for_step(client, killed.id, 3)
    daemon.kill()
    died_at = time.monotonic()
    wait_for(lambda: not group_members(training), "the trainer's group to end")
    assert time.monotonic() - died_at < CHILDREN_GONE_SECONDS
    daemon.start()
    resumed = finish(client, killed.id)

    assert adapter(daemon, resumed.id) == adapter(daemon, undisturbed.id)
    steps = [metric(event) for event in daemon.events(resumed.id) if "train_loss" in metric(event)]
    assert [each["step"] for each in steps] == list(range(1, steps[-1]["total_steps"] + 1))
    assert any("Resuming" in event["message"] for event in daemon.events(resumed.id))
    assert client.files.retrieve(file.id).status == "processed"
    answer = ask(client, resumed.fine_tuned_model, "What is the colour of box 7?")
    assert json.loads(answer).keys() == {"colour"}
    assert ask(client, f"{resumed.fine_tuned_model}@Q8_0", "What is the colour of box 7?")
    listed = {model.id for model in client.models.list()}
    assert {BASE, resumed.fine_tuned_model, undisturbed.fine_tuned_model} <= listed

    export_and_check(daemon, resumed.fine_tuned_model)

    adapted = f"{resumed.fine_tuned_model}@adapter"
    assert json.loads(ask(client, adapted, "What is the colour of box 7?")).keys() == {"colour"}
    answers = ask_while_an_alias_moves(
        daemon, client, [BASE, undisturbed.fine_tuned_model, adapted, resumed.fine_tuned_model]
    )
    assert '"colour"' not in answers[0]
    assert '"colour"' in answers[-1]


def export_and_check(daemon: RealDaemon, name: str) -> None:
    """As an operator takes it away, with the daemon running: all that belongs to it is there and whole."""
    directory = daemon.state_dir.with_name("exported")
    exporting = ["appliance", "models", "export", name, str(directory)]
    forms = [option for form in ("gguf", "adapter", "merged") for option in ("--form", form)]
    subprocess.run([sys.executable, "-m", *exporting, *forms], env=daemon.environment(), check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory, check=True)
    assert 'PARAMETER stop "<|im_end|>"' in (directory / "Modelfile").read_text()
    assert "TEMPLATE" in (directory / "Modelfile").read_text()
    assert "| torch |" in (directory / "README.md").read_text()
    assert {"adapter.gguf", "model-Q4_K_M.gguf", "model-Q8_0.gguf", "mlbom.cdx.json"} <= {
        path.name for path in directory.iterdir()
    }
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "merged")
    model = AutoModelForCausalLM.from_pretrained(directory / "merged")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the colour of box 7?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert '"colour"' in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def ask_while_an_alias_moves(
    daemon: RealDaemon, client: openai.OpenAI, models: list[str]
) -> list[str]:
    """What two apps that never stop asking are answered, none of them with an error."""
    answers: list[str] = []
    done = threading.Event()

    def app() -> None:
        while not done.is_set():
            answers.append(ask(client, "colours", "What is the colour of box 7?"))

    def wait_for_more() -> None:
        enough = len(answers) + 4
        wait_for(
            lambda: len(answers) >= enough or any(each.done() for each in asking), "more answers"
        )

    set_alias(daemon, models[0])
    with ThreadPoolExecutor(2) as apps:
        asking = [apps.submit(app), apps.submit(app)]
        try:
            for model in models[1:]:
                wait_for_more()
                set_alias(daemon, model)
            wait_for_more()
        finally:
            done.set()
        for each in asking:
            each.result()
    return answers


def set_alias(daemon: RealDaemon, model: str) -> None:
    ok(daemon.http.put("/api/v1/aliases/colours", json={"model": model}))


def rows(count: int = 24) -> bytes:
    """A rule that is easily learned: the colour follows from the number, the form from the examples."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of box {number}?"},
                {"role": "assistant", "content": json.dumps({"colour": COLOURS[number % 4]})},
            ]
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def start(client: openai.OpenAI, file_id: str) -> Any:
    options = {"appliance": {"advanced": {"learning_rate": 1e-3, "lora_dropout": 0.1}}}
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}},
    }
    return client.fine_tuning.jobs.create(
        model=BASE, training_file=file_id, seed=7, method=method, extra_body=options
    )


def finish(client: openai.OpenAI, job_id: str) -> Any:
    deadline = time.monotonic() + JOB_DEADLINE_SECONDS
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, job
        time.sleep(1)
    assert job.status == "succeeded", job.error
    return job


def training_process(daemon: RealDaemon, job_id: str) -> int:
    """The trainer's process id, which is also its group's."""

    def started() -> int | None:
        for line in daemon.log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("child") == f"training of {job_id}" and "pid" in entry:
                return int(entry["pid"])
        return None

    pid = wait_for(started, "the trainer to start")
    assert pid is not None
    return pid


def wait_for_step(client: openai.OpenAI, job_id: str, step: int) -> None:
    deadline = time.monotonic() + JOB_DEADLINE_SECONDS
    while True:
        events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        if any(event.message.startswith(f"Step {step}/") for event in events):
            return
        assert time.monotonic() < deadline, events
        time.sleep(0.2)


def metric(event: dict[str, Any]) -> dict[str, Any]:
    return event["data"] or {}


def adapter(daemon: RealDaemon, job_id: str) -> bytes:
    directory = daemon.state_dir / "jobs" / job_id / "training" / "adapter"
    return (directory / "adapter_model.safetensors").read_bytes()


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
    )
    return answer.choices[0].message.content or ""
