"""A base model over the API: from uploaded files to a model that can be asked, whatever comes between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon_process import BASE, error_of, ok, wait_for

PATH = "/api/v1/imports"


def upload(daemon, content=b"weights", filename="tiny.gguf", purpose="model"):
    form = {"file": (filename, content)}
    return ok(daemon.http.post("/v1/files", files=form, data={"purpose": purpose}))["id"]


def ask_for(daemon, files, name="tiny", **changes):
    body = {"name": name, "licence": "mit", "origin": "a laptop", "files": files} | changes
    return daemon.http.post(PATH, json=body)


def ended(daemon, import_id):
    def probe():
        found = ok(daemon.http.get(f"{PATH}/{import_id}"))
        return found if found["finished_at"] else None

    return wait_for(probe, "the import to end")


def hanging(daemon, import_id):
    def probe():
        found = ok(daemon.http.get(f"{PATH}/{import_id}"))
        return found if (found["progress"] or "").startswith("hanging") else None

    return wait_for(probe, "the import to hang")


def kept(daemon):
    return [path.name for path in (daemon.state_dir / "imports").iterdir()]


def test_one_gguf_becomes_a_model_that_answers(daemon):
    file = upload(daemon)
    asked = ok(ask_for(daemon, [file]))
    assert (asked["status"], asked["filenames"], asked["object"]) == (
        "queued",
        ["tiny.gguf"],
        "import",
    )
    # What was asked for has bytes of its own.
    ok(daemon.http.delete(f"/v1/files/{file}"))
    done = ended(daemon, asked["id"])
    assert (done["status"], done["error"], done["progress"]) == ("succeeded", None, None)
    (base,) = [
        each
        for each in ok(daemon.http.get("/api/v1/models"))["base_models"]
        if each["name"] == "tiny"
    ]
    assert (base["licence"], base["source"]) == ("mit", "a laptop")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    answer = ok(daemon.http.post("/v1/chat/completions", json=body))
    assert answer["choices"][0]["message"]["content"] == "tiny:hello"
    wait_for(lambda: not kept(daemon), "the files to go")
    listed = ok(daemon.http.get(PATH))
    assert ([each["id"] for each in listed["data"]], listed["has_more"]) == ([asked["id"]], False)


def test_several_files_become_one_model_and_two_imports_wait_for_each_other(daemon):
    directory = [upload(daemon, b"a", "config.json"), upload(daemon, b"b", "model.safetensors")]
    first, second = (
        ok(ask_for(daemon, files, name))["id"]
        for files, name in ((directory, "several"), ([upload(daemon, b"other")], "other"))
    )
    assert [ended(daemon, each)["status"] for each in (second, first)] == ["succeeded"] * 2
    names = {each["name"] for each in ok(daemon.http.get("/api/v1/models"))["base_models"]}
    assert {"several", "other"} < names


def test_what_the_import_refuses_is_told(daemon):
    failed = ended(daemon, ok(ask_for(daemon, [upload(daemon, b"refuse")]))["id"])
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "code": "fake_refusal",
        "message": "expected better rows, found these",
        "param": "rows",
    }
    crashed = ended(daemon, ok(ask_for(daemon, [upload(daemon, b"crash")]))["id"])
    assert (crashed["status"], crashed["error"]["code"]) == ("failed", "child_died")
    wait_for(lambda: not kept(daemon), "the files to go")
    # The next one is not held up.
    assert ended(daemon, ok(ask_for(daemon, [upload(daemon)]))["id"])["status"] == "succeeded"


@pytest.mark.parametrize(
    ("files", "changes", "code", "status"),
    [
        ([{}], {"name": "Not/a name"}, "invalid_model_name", 400),
        ([{}], {"name": "../../tmp"}, "invalid_model_name", 400),
        ([{"purpose": "user_data"}], {}, "invalid_model_files", 400),
        ([{"filename": ".."}], {}, "invalid_model_files", 400),
        ([{"filename": ".hidden"}], {}, "invalid_model_files", 400),
        ([{"filename": "a b"}], {}, "invalid_model_files", 400),
        ([{"filename": "x"}, {"filename": "x"}], {}, "invalid_model_files", 400),
        ([], {"files": ["file-x"]}, "file_not_found", 404),
        ([], {}, "invalid_value", 400),
        ([{}], {"licence": ""}, "invalid_value", 400),
        ([{}], {"surprise": 1}, "invalid_value", 400),
        ([{}], {"name": "called"}, "alias_exists", 400),
    ],
)
def test_what_cannot_be_is_refused_at_once(shared_daemon, files, changes, code, status):
    ok(shared_daemon.http.put("/api/v1/aliases/called", json={"model": BASE}))
    before = kept(shared_daemon)
    ids = [upload(shared_daemon, **each) for each in files]
    body = {"files": ids, **changes}
    assert error_of(ask_for(shared_daemon, **body), status)["code"] == code
    assert kept(shared_daemon) == before


def test_the_same_name_for_another_model_fails_and_for_the_same_changes_nothing(daemon):
    results = [
        ended(daemon, ok(ask_for(daemon, [upload(daemon, content)]))["id"])
        for content in (b"one", b"one", b"two")
    ]
    assert [each["status"] for each in results] == ["succeeded", "succeeded", "failed"]
    assert results[2]["error"]["code"] == "model_exists"


def test_a_cancelled_one_is_gone_with_its_processes(daemon):
    running = ok(ask_for(daemon, [upload(daemon, b"hang")]))["id"]
    waiting = ok(ask_for(daemon, [upload(daemon)], "other"))["id"]
    pid = int(hanging(daemon, running)["progress"].rpartition(" ")[2])
    assert ok(daemon.http.post(f"{PATH}/{waiting}/cancel"))["status"] == "cancelled"
    assert ok(daemon.http.post(f"{PATH}/{running}/cancel"))["status"] == "cancelled"
    assert not Path(f"/proc/{pid}").exists()
    assert kept(daemon) == []
    assert error_of(daemon.http.post(f"{PATH}/{running}/cancel"), 400)["code"] == "import_ended"
    assert error_of(daemon.http.post(f"{PATH}/import-x/cancel"), 404)["code"] == "import_not_found"
    assert ended(daemon, ok(ask_for(daemon, [upload(daemon)]))["id"])["status"] == "succeeded"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_one_that_was_under_way_begins_anew_at_the_next_start(daemon, end):
    source = upload(daemon, b"hang")
    running = ok(ask_for(daemon, [source]))["id"]
    waiting = ok(ask_for(daemon, [upload(daemon)], "other"))["id"]
    hanging(daemon, running)
    getattr(daemon, end)()
    # What an import that was never stored, or has ended, left behind.
    (daemon.state_dir / "imports" / "import-lost").mkdir()
    daemon.start()
    hanging(daemon, running)
    assert sorted(kept(daemon)) == sorted([running, waiting])
    ok(daemon.http.post(f"{PATH}/{running}/cancel"))
    assert ended(daemon, waiting)["status"] == "succeeded"


def test_only_the_admin_imports(daemon):
    key = ok(daemon.http.post("/api/v1/keys", json={"name": "app"}))["secret"]
    with daemon.client(key) as client:
        assert client.get(PATH).status_code == 200
        refused = client.post(PATH, json={})
        assert error_of(refused, 403)["code"] == "insufficient_permissions"
