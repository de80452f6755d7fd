"""Whose account a command uses: options before the environment, the environment before what is saved."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from support import names_in

from convertrilo.cli.app import run
from convertrilo.cli.settings import account_settings, config_file
from convertrilo.sandbox import Sandbox, serve_in_thread


def saved(profiles: Any) -> Path:
    file = config_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"profiles": profiles}))
    return file


def test_nothing_is_saved_at_first() -> None:
    assert (account_settings(None).api_key, account_settings(None).base_url) == (None, "https://api.convertrilo.com")


def test_an_option_stands_before_the_environment_and_that_before_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    saved({"default": {"apiKey": "a"}, "work": {"apiKey": "b", "baseUrl": "https://b.test"}, "home": {"apiKey": "c"}})
    assert account_settings(None).api_key == "a"
    monkeypatch.setenv("CONVERTRILO_PROFILE", "work")
    assert (account_settings(None).api_key, account_settings(None).base_url) == ("b", "https://b.test")
    monkeypatch.setenv("CONVERTRILO_API_KEY", "env")
    assert (account_settings(None).api_key, account_settings(None).base_url) == ("env", "https://b.test")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", "https://env.test")
    assert account_settings(None).base_url == "https://env.test"
    # Who names an account wants that one, and its key goes nowhere but to that account's service.
    assert (account_settings("home").api_key, account_settings("home").base_url) == ("c", "https://api.convertrilo.com")


def test_the_typescript_commands_settings_are_read_until_there_are_own_ones(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = home / ".convertrilo" / "config.json"
    theirs.parent.mkdir()
    theirs.write_text('{"apiKey": "cvr_theirs", "baseUrl": "https://theirs.test"}')
    assert (account_settings(None).api_key, account_settings(None).base_url) == ("cvr_theirs", "https://theirs.test")
    assert run(["logout"]) == 0
    assert "it is not changed" in capsys.readouterr().err
    assert account_settings(None).api_key is None
    assert "cvr_theirs" in theirs.read_text()


WRONG = [
    ("{", "is not valid JSON"),
    ("[]", "holds no profiles"),
    ('{"profiles": []}', "holds no profiles"),
    ('{"profiles": {"default": 1}}', "holds no profiles"),
]


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_a_file_that_is_damaged_is_said_to_be(text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved({}).write_text(text)
    assert run(["config", "get"]) == 2
    err = capsys.readouterr().err
    assert f"{config_file()} {says}" in err
    assert err.count("\n") == 1


def test_an_unknown_profile_is_an_error_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    saved({"work": {"apiKey": "b"}})
    assert run(["balance", "--profile", "wrok"]) == 2
    says = "there is no profile 'wrok', the saved profiles are work: log in with convertrilo login --profile wrok"
    assert capsys.readouterr().err == f"convertrilo: {says}\n"


def test_settings_are_changed_one_by_one_and_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["apiKey", "cvr_secret"], ["accessToken", "tok_secret"], ["baseUrl", "https://x.test"]):
        assert run(["config", "set", *arguments, "--profile", "work"]) == 0
    assert run(["config", "set", "apiKey", ""]) == 0
    assert config_file().stat().st_mode & 0o777 == 0o600
    assert config_file().parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in config_file().parent.iterdir()] == ["config.json"]
    assert run(["config", "get", "apiKey", "--profile", "work"]) == 0
    assert run(["config", "get", "baseUrl", "--profile", "work"]) == 0
    assert run(["config", "get", "--profile", "work", "--json"]) == 0
    assert run(["logout", "--profile", "work"]) == 0
    out, err = capsys.readouterr()
    assert "[saved]\nhttps://x.test\n" in out
    assert "_secret" not in out + err
    assert "_secret" not in config_file().read_text()


@pytest.mark.parametrize("step", ["json.dump", "pathlib.Path.replace"])
def test_a_disk_that_is_full_leaves_no_key_behind_and_what_was_saved_as_it_was(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = saved({"work": {"apiKey": "cvr_before"}}).read_text()
    monkeypatch.setattr(step, full)
    assert run(["config", "set", "apiKey", "cvr_after", "--profile", "work"]) == 2
    assert capsys.readouterr().err == f"convertrilo: {config_file()} cannot be written: No space left on device\n"
    assert names_in(config_file().parent) == ["config.json"]
    assert config_file().read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["baseUrl", "nowhere"], "the base URL must begin with https:// or http://"),
        (["apiKey", "two words"], "the API key must be visible ASCII characters"),
    ],
)
def test_what_cannot_be_right_is_not_saved(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "set", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not config_file().exists()


# ---- login


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        yield sandbox


def login(monkeypatch: pytest.MonkeyPatch, stdin: str, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", StringIO(stdin))
    return run(["login", *options])


def test_login_by_password_saves_a_token_that_keys_can_use(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert login(monkeypatch, service.password, "--email", service.email, "--profile", "work") == 0
    assert run(["keys", "list", "--profile", "work", "--json"]) == 0
    assert run(["balance", "--profile", "work"]) == 0
    said = "".join(capsys.readouterr())
    token = account_settings("work").access_token
    assert token is not None
    assert token not in said
    assert service.password not in said + config_file().read_text()


def test_login_saves_nothing_that_the_service_does_not_accept(
    service: Sandbox, nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[str, list[str], int, str]] = [
        ("cvr_wrong", [], 5, "401 invalid_api_key"),
        ("wrong-password", ["--email", service.email], 5, "401 user_not_found"),
        ("", [], 2, "no API key: give it on stdin"),
        ("", ["--email", service.email], 2, "no Password: give it on stdin"),
        (service.api_key, ["--base-url", f"http://{nobody}"], 4, "nothing was sent"),
        ("", ["--email", service.email, "--api-key", "k"], 2, "exclude each other"),
    ]
    for stdin, options, code, says in cases:
        assert login(monkeypatch, stdin, *options) == code
        err = capsys.readouterr().err
        assert says in err
        assert "cvr_wrong" not in err
    assert not config_file().exists()


def test_a_key_that_may_not_see_the_balance_is_a_good_key(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert login(monkeypatch, service.password, "--email", service.email) == 0
    assert run(["keys", "create", "small", "--scope", "jobs:read", "--field", "key"]) == 0
    key = capsys.readouterr().out.splitlines()[-1]
    assert login(monkeypatch, "", "--api-key", key) == 0
    assert account_settings(None).api_key == key


def test_with_the_sandbox_login_tries_and_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert login(monkeypatch, "sandbox-password", "--email", "someone@example.com", "--sandbox") == 0
    assert login(monkeypatch, "cvr_wrong", "--sandbox") == 5
    assert not config_file().exists()
    assert run(["keys", "list", "--sandbox", "--json"]) == 0
    assert run(["balance", "--sandbox", "--json"]) == 0
