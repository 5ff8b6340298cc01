"""Where a setting comes from, and that every fault is told at once."""

from __future__ import annotations

import msgspec
import pytest

from appliance import settings
from appliance.errors import ConfigurationError
from appliance.settings import Settings

# Flag or variable by name, and a word that the complaint must hold besides the name.
BAD_VALUES = [
    ("port", "0", ">= 1"),
    ("port", "65536", "<= 65535"),
    ("port", "http", "http"),
    ("port", "8484.5", "8484.5"),
    ("port", "", "port"),
    ("log_level", "TRACE", "TRACE"),
    ("log_level", "info", "info"),
    ("threads", "-1", ">= 0"),
    ("threads", "1025", "<= 1024"),
    ("threads", "9" * 400, "threads"),
    ("max_upload_bytes", "0", ">= 1"),
    ("max_upload_bytes", "512M", "512M"),
    ("max_request_bytes", "-5", ">= 1"),
    ("storage_quota_bytes", "-1", ">= 0"),
    ("body_timeout_seconds", "0", "> 0"),
    ("body_timeout_seconds", "nan", "nan"),
    ("checkpoint_seconds", "-1", ">= 0"),
    ("stall_timeout_seconds", "soon", "soon"),
    ("engine_stall_seconds", "0", "> 0"),
    ("engine_idle_seconds", "-0.5", "> 0"),
    ("max_waiting_requests", "0", ">= 1"),
    ("drain_seconds", "-1", ">= 0"),
    ("drain_seconds", "31", "<= 30"),
    ("state_dir", "", "path"),
]


@pytest.mark.parametrize(("name", "value", "word"), BAD_VALUES)
def test_bad_value_is_refused_by_name(name, value, word):
    with pytest.raises(ConfigurationError) as caught:
        settings.load({name: value}, {})
    assert caught.value.code == "invalid_settings"
    assert name in caught.value.message
    assert word in caught.value.message


def test_bad_values_are_many():
    assert len(BAD_VALUES) == 24
    assert {name for name, _, _ in BAD_VALUES} <= set(Settings.__struct_fields__)


def test_all_faults_are_told_together(tmp_path):
    file = tmp_path / "appliance.toml"
    file.write_text("prot = 1\nhost = 5\n[server]\nport = 1\n")
    environment = {"APPLIANCE_CONFIG": str(file), "APPLIANCE_PORT": "x"}
    with pytest.raises(ConfigurationError) as caught:
        settings.load({"threads": "-3"}, environment)
    for name in ("prot", "host", "server", "port", "threads"):
        assert f"{name}: " in caught.value.message


def test_flag_wins_over_environment_wins_over_file_wins_over_default(tmp_path):
    file = tmp_path / "appliance.toml"
    file.write_text("port = 1001\nthreads = 2\nmax_waiting_requests = 3\n")
    environment = {
        "APPLIANCE_CONFIG": str(file),
        "APPLIANCE_PORT": "1002",
        "APPLIANCE_THREADS": "4",
    }
    loaded = settings.load({"port": "1003", "host": None}, environment)
    assert loaded.port == 1003
    assert loaded.threads == 4
    assert loaded.max_waiting_requests == 3
    assert loaded.host == "127.0.0.1"


def test_every_setting_can_be_set_by_its_variable():
    given = {
        "state_dir": "/a",
        "host": "0.0.0.0",
        "port": "1",
        "log_level": "ERROR",
        "profile": "cpu",
        "profile_dir": "/b",
        "profile_override_file": "/p",
        "converter_dir": "/c",
        "threads": "7",
        "max_upload_bytes": "2",
        "max_request_bytes": "3",
        "storage_quota_bytes": "4",
        "body_timeout_seconds": "4",
        "checkpoint_seconds": "5",
        "stall_timeout_seconds": "6",
        "engine_stall_seconds": "7",
        "engine_idle_seconds": "8",
        "max_waiting_requests": "9",
        "drain_seconds": "11",
    }
    assert set(given) == set(Settings.__struct_fields__)
    loaded = settings.load({}, {f"APPLIANCE_{name.upper()}": given[name] for name in given})
    for name, value in given.items():
        assert float(getattr(loaded, name)) == float(value) if value.isdigit() else True
        assert str(getattr(loaded, name)) != str(getattr(Settings(), name))


def test_every_setting_says_what_it_is():
    fields = msgspec.structs.fields(Settings)
    described = [field.name for field in fields if field.type.__metadata__[0].description]
    assert described == list(Settings.__struct_fields__)
    assert len(described) == 19


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    assert settings.load({"state_dir": "here"}, {}).state_dir == tmp_path / "here"
    assert str(settings.load({"state_dir": "~/there"}, {}).state_dir) == "/somewhere/there"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"port = ", "unreadable_config_file"),
        (b"\xff\xfe", "unreadable_config_file"),
        (b"port = 1\nport = 2\n", "unreadable_config_file"),
        (None, "no_config_file"),
    ],
)
def test_bad_file_is_named(tmp_path, content, code):
    file = tmp_path / "appliance.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings.load({}, {"APPLIANCE_CONFIG": str(file)})
    assert caught.value.code == code
    assert str(file) in caught.value.message


def test_config_file_that_is_a_directory_is_named(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        settings.load({}, {"APPLIANCE_CONFIG": str(tmp_path)})
    assert caught.value.code == "unreadable_config_file"


def test_no_file_means_defaults():
    assert settings.load({}, {}) == Settings()


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8484"), ("::1", "http://[::1]:8484")],
)
def test_url_is_one_that_a_client_can_use(host, url):
    assert Settings(host=host).url == url


def test_misspelt_variable_is_refused_and_one_that_is_no_setting_is_not():
    with pytest.raises(ConfigurationError, match="prot: there is no such setting"):
        settings.load({}, {"APPLIANCE_PROT": "1"})
    settings.load({}, {"APPLIANCE_TEST_CONVERTER": "x", "APPLIANCE_DEATH_FD": "3", "OTHER": "x"})
