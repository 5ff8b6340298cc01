"""Each verb as people call it, against a daemon with fake children."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from appliance import cli
from appliance.settings import CHECKOUT
from tests.daemon_process import BASE, ok, rows


@pytest.fixture
def call(shared_daemon, tmp_path):
    """`call(*arguments, stdin=…, **environment)`: run the command line to its end."""

    def through(*arguments: str, stdin: str = "", **environment: str):
        return subprocess.run(
            [sys.executable, "-m", "appliance", *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            cwd=tmp_path,
            timeout=120,
            env={
                **os.environ,
                "PYTHONPATH": str(CHECKOUT),
                "COLUMNS": "200",
                **shared_daemon.connection(),
                **environment,
            },
        )

    return through


@pytest.fixture
def told(call):
    """`told(*arguments)`: the JSON that a verb writes with `--json -`."""

    def through(*arguments: str, **options: str):
        done = call(*arguments, "--json", "-", **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return through


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(rows())
    return path


def refused(done) -> str:
    """The one line of a verb that failed."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("appliance: ")
    return lines[0].removeprefix("appliance: ")


def test_files_are_uploaded_listed_and_deleted(told, train_file):
    file = told("files", "upload", str(train_file))
    assert (file["filename"], file["purpose"]) == ("train.jsonl", "fine-tune")
    assert file["id"] in [each["id"] for each in told("files", "list")]
    assert told("files", "delete", file["id"])["deleted"] is True


def test_what_is_made_is_printed_as_its_id_alone(call, told, train_file):
    file_id = call("files", "upload", str(train_file)).stdout.removesuffix("\n")
    assert file_id in [each["id"] for each in told("files", "list")]
    job_id = call("jobs", "create", BASE, file_id).stdout.removesuffix("\n")
    assert told("jobs", "follow", job_id)["status"] == "succeeded"


def test_job_is_created_followed_and_shown(told, call, train_file, tmp_path):
    file = told("files", "upload", str(train_file))
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"seed": 5, "appliance": {"quantizations": ["Q8_0"]}}))
    job = told("jobs", "create", BASE, file["id"], "--suffix", "cli", "--options", str(options))
    assert (job["seed"], job["user_provided_suffix"]) == (5, "cli")
    done = told("jobs", "follow", job["id"])
    assert done["status"] == "succeeded"
    shown = told("jobs", "show", job["id"])
    assert shown["job"]["id"] == job["id"]
    assert len(shown["events"]) == 10
    assert job["id"] in [each["id"] for each in told("jobs", "list", "--limit", "100")]
    assert done["fine_tuned_model"] in call("models", "list").stdout


def test_followed_job_that_fails_is_exit_status_one(told, call, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(rows("refuse"))
    file = told("files", "upload", str(path))
    job = told("jobs", "create", BASE, file["id"])
    done = call("jobs", "follow", job["id"])
    assert done.returncode == 1
    assert "fake_refusal" in done.stdout


def test_job_is_cancelled(told, call, tmp_path):
    path = tmp_path / "hang.jsonl"
    path.write_bytes(rows("hang"))
    job = told("jobs", "create", BASE, told("files", "upload", str(path))["id"])
    assert told("jobs", "cancel", job["id"])["status"] == "cancelled"
    assert call("jobs", "follow", job["id"]).stdout.strip() == "cancelled"


def test_keys_are_created_listed_and_revoked(told, call, shared_daemon):
    key = told("keys", "create", "line 3")
    with shared_daemon.client(key["secret"]) as app:
        ok(app.get("/v1/models"))
    listing = call("keys", "list").stdout
    assert key["id"] in listing
    assert key["secret"] not in listing
    assert told("keys", "revoke", key["id"])["deleted"] is True


def test_aliases_are_set_listed_and_deleted(told, call):
    alias = told("aliases", "set", "line-3", f"{BASE}@Q4_K_M")
    assert (alias["name"], alias["model"]) == ("line-3", f"{BASE}@Q4_K_M")
    assert alias in told("aliases", "list")
    assert call("aliases", "set", "line-3", BASE).stdout.strip() == f"line-3 means {BASE}"
    assert "line-3" in call("aliases", "list", COLUMNS="20").stdout
    assert told("chat", "line-3", "hello")["answer"] == f"{BASE}:hello"
    assert told("aliases", "delete", "line-3")["deleted"] is True
    assert "line-3" not in [each["name"] for each in told("aliases", "list")]


def test_a_model_that_something_is_made_of_is_not_deleted(told, call, shared_daemon):
    job = shared_daemon.wait_for_job(shared_daemon.create_job()["id"], "succeeded")
    model = job["fine_tuned_model"]
    refused = call("models", "delete", BASE)
    assert refused.returncode == 1
    assert "model_in_use" in refused.stderr
    assert told("models", "delete", model)["deleted"] is True
    assert model not in [each["name"] for each in told("models", "list")["releases"]]


def test_models_are_listed(told):
    assert BASE in [base["name"] for base in told("models", "list")["base_models"]]


@pytest.mark.parametrize("verb", ["files", "jobs", "keys", "models"])
def test_listing_is_not_wrapped_on_a_narrow_terminal(told, call, train_file, verb):
    file = told("files", "upload", str(train_file))
    job = told("jobs", "create", BASE, file["id"])
    done = told("jobs", "follow", job["id"])
    named = {"files": file["id"], "jobs": done["fine_tuned_model"], "models": job["model"]}
    named["keys"] = told("keys", "list")[0]["id"]
    assert named[verb] in call(verb, "list", COLUMNS="20").stdout


def test_refusal_without_a_daemon_names_the_whole_command(call, shared_daemon):
    state_dir = shared_daemon.connection()["APPLIANCE_STATE_DIR"]
    told = refused(call("models", "list", "--port", "1"))
    assert told.endswith(f"appliance serve --state-dir {state_dir} --host 127.0.0.1 --port 1")


def test_question_is_answered(told, call):
    assert told("chat", BASE, "hello")["answer"] == f"{BASE}:hello"
    assert call("chat", BASE, "hello", "--system", "be brief").stdout.strip() == f"{BASE}:hello"


def test_dialogue_goes_on_until_an_empty_line(call):
    done = call("chat", BASE, stdin="one\ntwo\n\n")
    assert done.returncode == 0
    assert f"{BASE}:one" in done.stdout
    assert f"{BASE}:two" in done.stdout


def test_dialogue_ends_with_its_input(call):
    done = call("chat", BASE, stdin="one\n")
    assert f"{BASE}:one" in done.stdout
    assert done.returncode == 0
    assert "An empty line ends" in done.stderr


def test_json_goes_to_a_file_too(call, tmp_path):
    done = call("models", "list", "--json", str(tmp_path / "out.json"))
    assert BASE in done.stdout
    assert "base_models" in json.loads((tmp_path / "out.json").read_text())


def test_doctor_reports_every_check(call):
    done = call("doctor", "--json", "-")
    findings = json.loads(done.stdout)
    assert [each["check"] for each in findings] == [
        "state directory",
        "accelerator",
        "converter",
        "allocator",
        "4-bit training",
        "llama.cpp decode",
    ]
    failed = [each for each in findings if each["outcome"] == "failed"]
    assert done.returncode == (1 if failed else 0)
    assert all(each["next_step"] for each in failed)
    assert "Traceback" not in done.stderr


def test_doctor_reports_what_it_cannot_even_look_at(call, tmp_path):
    (tmp_path / "file").write_text("")
    done = call("doctor", "--json", "-", "--state-dir", str(tmp_path / "file" / "state"))
    findings = {each["check"]: each for each in json.loads(done.stdout)}
    assert len(findings) == 6
    found = findings["state directory"]
    assert found["outcome"] == "failed"
    assert "--state-dir" in found["next_step"]
    assert done.returncode == 1


FAILURES = [
    (("files", "upload", "no-such-file"), "no-such-file: No such file or directory"),
    (("files", "upload", "."), "Is a directory"),
    (("files", "upload", "empty.jsonl"), "empty_file"),
    (("files", "delete", "file-none"), "file_not_found"),
    (("jobs", "create", "none", "file-none"), "model_not_found"),
    (("jobs", "create", BASE, "file-none"), "invalid_file"),
    (("jobs", "create", BASE, "list.json"), "appliance files upload list.json"),
    (
        ("jobs", "create", BASE, "f", "--validation-file", "list.json"),
        "appliance files upload list.json",
    ),
    (("jobs", "create", BASE, "f", "--options", "none.json"), "none.json"),
    (("jobs", "create", BASE, "f", "--options", "empty.jsonl"), "invalid_options"),
    (("jobs", "create", BASE, "f", "--options", "list.json"), "invalid_options"),
    (("jobs", "show", "ftjob-none"), "fine_tuning_job_not_found"),
    (("jobs", "follow", "ftjob-none"), "fine_tuning_job_not_found"),
    (("jobs", "cancel", "ftjob-none"), "fine_tuning_job_not_found"),
    (("jobs", "list", "--limit", "0"), "invalid_value"),
    (("aliases", "set", "a/b", BASE), "invalid_alias_name"),
    (("aliases", "set", "a", "none"), "model_not_found"),
    (("aliases", "set", BASE, BASE), "model_exists"),
    (("aliases", "delete", "none"), "alias_not_found"),
    (("keys", "create", ""), "invalid_value"),
    (("keys", "revoke", "key-none"), "key_not_found"),
    (("chat", "none", "q"), "model_not_found"),
    (("chat", BASE, "crash"), "engine_died"),
    (("chat", BASE, "crash-at-once"), "engine_died"),
    (("chat", BASE, "q", "--temperature", "7"), "invalid_value"),
    (("models", "list", "--json", "no/such/dir/out.json"), "no/such/dir"),
    (("models", "list", "--port", "99999"), "invalid_settings"),
    (("models", "list", "--port", "1"), "no_daemon"),
    (("models", "list", "--state-dir", "elsewhere"), "no_admin_key"),
    (
        ("models", "import", "x", "--name", "A B", "--licence", "l", "--origin", "o"),
        "invalid_model_name",
    ),
    (("demo", "--starter", "none", "--example", "none"), "none"),
    (("stop", "--state-dir", "elsewhere"), "no_daemon"),
    (("serve",), "already_running"),
    (("serve", "--state-dir", "empty.jsonl"), "unusable_state_dir"),
    (("serve", "--state-dir", "fresh", "--host", "no.such.host"), "cannot_listen"),
    (("serve", "--state-dir", "fresh"), "cannot_listen"),
    (("serve", "--state-dir", "fresh", "--port", "1", "--profile", "gpu9000"), "unknown_profile"),
]


@pytest.fixture
def call_here(shared_daemon, tmp_path, monkeypatch, capsys):
    """As `call`, without a process of its own, which would take most of a second."""

    def through(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["appliance", *arguments])
        for name, value in shared_daemon.connection().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        # What the interpreter does with it.
        status, line = (
            (1, caught.value.code)
            if isinstance(caught.value.code, str)
            else (caught.value.code, "")
        )
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, captured.out, captured.err + line)

    return through


@pytest.mark.parametrize(("arguments", "word"), FAILURES, ids=range(len(FAILURES)))
def test_failure_is_one_line_and_exit_status_one(call, call_here, tmp_path, arguments, word):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "list.json").write_text("[1]")
    run = call if arguments[0] == "serve" else call_here
    assert word in refused(run(*arguments))


def test_failures_are_many():
    assert len(FAILURES) == 37


def test_daemon_is_stopped_once(daemon, call):
    named = ("--state-dir", str(daemon.state_dir))
    assert call("stop", *named).stdout.strip() == "the daemon has stopped"
    assert (daemon.state_dir / "daemon.lock").read_text() == ""
    assert "no_daemon" in refused(call("stop", *named))


def test_process_that_a_killed_daemon_left_named_is_not_stopped(daemon, call):
    daemon.kill()
    lock = daemon.state_dir / "daemon.lock"
    assert lock.read_text()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        lock.write_text(str(bystander.pid))
        assert "no_daemon" in refused(call("stop", "--state-dir", str(daemon.state_dir)))
        assert bystander.poll() is None


def test_flag_wins_over_environment_wins_over_file(call, tmp_path):
    config = tmp_path / "appliance.toml"
    config.write_text('log_level = "NONSENSE"\nport = 1\n')
    file_only = {"APPLIANCE_CONFIG": str(config)}
    assert "'NONSENSE'" in refused(call("models", "list", **file_only))
    variable = {**file_only, "APPLIANCE_LOG_LEVEL": "LOUD"}
    assert "'LOUD'" in refused(call("models", "list", **variable))
    done = call("serve", "--log-level", "SHRILL", **variable)
    assert "'SHRILL'" in refused(done)


def test_help_names_every_setting_and_verb(call):
    done = call("serve", "--help")
    assert done.returncode == 0
    for name in ("--state-dir", "--body-timeout-seconds", "--max-waiting-requests"):
        assert name in done.stdout
    verbs = call("--help").stdout
    for verb in (
        "serve",
        "stop",
        "demo",
        "doctor",
        "profile",
        "fit",
        "chat",
        "files",
        "jobs",
        "models",
        "aliases",
        "keys",
    ):
        assert verb in verbs


def test_names_that_look_like_emoji_stay_what_they_are(call, told, train_file):
    job = told(
        "jobs", "create", BASE, told("files", "upload", str(train_file))["id"], "--suffix", "star"
    )
    done = call("jobs", "follow", job["id"])
    name = f"ft:{BASE}:local:star:{job['id'][-8:]}"
    assert name in done.stdout
    assert name in done.stderr
    assert name in call("models", "list").stdout
    assert name in call("jobs", "show", job["id"]).stdout
