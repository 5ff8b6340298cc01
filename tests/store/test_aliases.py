"""An alias means one model that exists, and shares its name with none."""

from __future__ import annotations

import threading

import pytest

from appliance.errors import InvalidInput, NotFound, WrongState
from appliance.records import BaseModel, JobStatus, Release
from appliance.store.store import Store
from tests.store.conftest import make_job


def make_base(name: str) -> BaseModel:
    return BaseModel(
        name=name,
        created_at=1,
        architecture="a",
        parameters=1,
        context_length=1,
        licence="l",
        source="s",
        sha256="0",
        directory="d",
        files=(),
    )


@pytest.fixture
def store(store):
    """With two base models and a release."""
    for name in ("one", "two"):
        store.catalog.put_base(make_base(name))
    job = make_job(JobStatus.RUNNING)
    store.jobs.add(job)
    release = Release(
        name="ft:one:local::1",
        created_at=1,
        job_id=job.id,
        base_model="one",
        adapter_directory="a",
        files=(),
    )
    store.jobs.move(job.id, JobStatus.SUCCEEDED, "done", release=release)
    return store


@pytest.mark.parametrize("model", ["one", "ft:one:local::1", "ft:one:local::1@Q8_0"])
def test_alias_comes_back_as_it_was_set_also_after_opening_again(store, state_dir, model):
    alias = store.aliases.put("line-3", model)
    assert (alias.name, alias.model) == ("line-3", model)
    store.close()
    again = Store(state_dir)
    assert again.aliases.get("line-3") == again.aliases.find("line-3") == alias
    assert again.aliases.list() == [alias]
    again.close()


def test_change_keeps_the_place_and_the_time_of_the_beginning(store, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 100)
    store.aliases.put("a", "one")
    store.aliases.put("b", "one")
    monkeypatch.setattr("time.time", lambda: 200)
    same = store.aliases.put("b", "one")
    changed = store.aliases.put("a", "two")
    assert (same.created_at, same.changed_at) == (100, 100)
    assert (changed.created_at, changed.changed_at, changed.model) == (100, 200, "two")
    assert store.aliases.list() == [changed, same]


@pytest.mark.parametrize("name", ["a", "A", "0", "faults.v2_line-3", "x" * 64])
def test_good_name_is_taken(store, name):
    assert store.aliases.put(name, "one").name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-a",
        "_a",
        "a/b",
        "a@Q8_0",
        "a:b",
        "ft:x",
        "x" * 65,
        "a\n",
        "a b",
        "ü",
        "\x00",
    ],
)
def test_bad_name_is_refused(store, name):
    for refuse in (store.aliases.put, store.aliases.check):
        with pytest.raises(InvalidInput) as caught:
            refuse(name, "one")
        assert (caught.value.code, caught.value.param) == ("invalid_alias_name", "name")
    assert store.aliases.list() == []


def test_name_of_a_model_is_refused(store):
    for refuse in (store.aliases.put, store.aliases.check):
        with pytest.raises(WrongState) as caught:
            refuse("two", "one")
        assert (caught.value.code, caught.value.param) == ("model_exists", "name")
    assert store.aliases.list() == []


@pytest.mark.parametrize("model", ["none", "none@Q8_0", "ft:one:local::2", "@Q8_0", ""])
def test_model_that_is_not_there_is_refused_by_its_name(store, model):
    for refuse in (store.aliases.put, store.aliases.check):
        with pytest.raises(NotFound) as caught:
            refuse("a", model)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert repr(model.partition("@")[0]) in caught.value.message
    assert store.aliases.list() == []


@pytest.mark.parametrize("model", ["a", "a@Q8_0"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_alias_of_an_alias_is_refused_and_what_it_means_is_told(store, name, model):
    before = store.aliases.put("a", "one")
    with pytest.raises(InvalidInput) as caught:
        store.aliases.put(name, model)
    assert (caught.value.code, caught.value.param) == ("alias_of_alias", "model")
    assert "'one'" in str(caught.value)
    assert store.aliases.list() == [before]


def test_base_model_cannot_take_the_name_of_an_alias(store):
    store.aliases.put("a", "one")
    put, check = store.catalog.put_base, store.catalog.check_base_name
    for refuse, given in ((put, make_base("a")), (check, "a")):
        with pytest.raises(WrongState) as caught:
            refuse(given)
        assert (caught.value.code, caught.value.param) == ("alias_exists", "name")
    assert store.catalog.find_base("a") is None
    # The one that the alias means may be imported again.
    store.catalog.check_base_name("one")
    store.catalog.put_base(make_base("one"))
    store.aliases.delete("a")
    store.catalog.put_base(make_base("a"))


def test_of_an_alias_and_a_base_model_of_one_name_at_once_one_is_refused(store, state_dir):
    # Two openings, as the daemon and an import are.
    other = Store(state_dir)
    outcomes = []
    barrier = threading.Barrier(2)

    def attempt(act) -> None:
        barrier.wait(10)
        try:
            act()
            outcomes.append("done")
        except WrongState as exc:
            outcomes.append(exc.code)

    for number in range(20):
        name = f"name-{number}"
        acts = (
            lambda name=name: store.aliases.put(name, "one"),
            lambda name=name: other.catalog.put_base(make_base(name)),
        )
        threads = [threading.Thread(target=attempt, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (store.aliases.find(name) is None) == (store.catalog.find_base(name) is not None)
    other.close()
    assert len(outcomes) == 40
    assert outcomes.count("done") == 20


def test_deleted_alias_is_gone_and_its_model_is_not(store):
    store.aliases.put("a", "one")
    store.aliases.delete("a")
    assert store.aliases.find("a") is None
    assert store.catalog.find_base("one") is not None
    for refuse in (store.aliases.delete, store.aliases.get):
        with pytest.raises(NotFound) as caught:
            refuse("a")
        assert (caught.value.code, caught.value.param) == ("alias_not_found", "name")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("free", "ft:one:local::1"),
        ("free@Q8_0", "ft:one:local::1@Q8_0"),
        ("fixed", "ft:one:local::1@Q4_K_M"),
        ("one", "one"),
        ("one@Q8_0", "one@Q8_0"),
        ("none", "none"),
        ("FREE", "FREE"),
        ("", ""),
        ("@", "@"),
    ],
)
def test_name_means_what_its_alias_says_or_itself(store, name, meant):
    store.aliases.put("free", "ft:one:local::1")
    store.aliases.put("fixed", "ft:one:local::1@Q4_K_M")
    assert store.aliases.resolve(name) == meant


@pytest.mark.parametrize("name", ["fixed@Q8_0", "fixed@Q4_K_M", "fixed@"])
def test_second_quantization_is_refused(store, name):
    store.aliases.put("fixed", "ft:one:local::1@Q4_K_M")
    with pytest.raises(InvalidInput) as caught:
        store.aliases.resolve(name)
    assert (caught.value.code, caught.value.param) == ("variant_given_twice", "model")
    assert "'ft:one:local::1@Q4_K_M'" in caught.value.message


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("free", "ft:one:local::1"),
        ("fixed", "ft:one:local::1"),
        ("one", "one"),
        ("one@Q8_0", "one@Q8_0"),
        ("free@Q8_0", "free@Q8_0"),
    ],
)
def test_model_that_is_trained_on_has_no_quantization(store, name, model):
    store.aliases.put("free", "ft:one:local::1")
    store.aliases.put("fixed", "ft:one:local::1@Q4_K_M")
    assert store.aliases.model_of(name) == model
