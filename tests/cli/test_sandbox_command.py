"""`convertrilo sandbox` as people run it: in a process of its own, stopped by Ctrl-C."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from sandbox_command import COMMAND, LINES, settings_in


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def settings(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what it says is to be pasted."""
    assert process.stdout is not None
    return settings_in("".join(process.stdout.readline() for _ in range(LINES)))


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_it_serves_with_the_settings_that_it_prints_and_remembers_them_in_its_state(tmp_path: Path) -> None:
    keys: list[str] = []
    for _ in range(2):
        process = start(tmp_path, "--port", "0", "--state", "state")
        base_url, api_key = settings(process)
        assert base_url.startswith("http://127.0.0.1:")
        keys.append(api_key)
        headers = {"X-API-Key": api_key}
        balance = httpx.get(f"{base_url}/tokens/balance", headers=headers, trust_env=False, timeout=60)
        assert balance.json()["available"] > 0
        code, said = stop(process)
        assert code == 0, said
        assert "Ctrl-C stops it" in said
    assert keys[0] == keys[1]


@pytest.mark.parametrize("taken", ["port", "state"])
def test_what_another_one_has_is_one_clear_line(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = start(tmp_path, "--port", "0", "--state", "state")
        settings(first)
        port = str(listener.getsockname()[1]) if taken == "port" else "0"
        state = "state" if taken == "state" else "another"
        second = start(tmp_path, "--port", port, "--state", state)
        _, said = second.communicate(timeout=60)
        stop(first)
    assert second.returncode == 2
    assert said.startswith("convertrilo: ")
    assert said.count("\n") == 1
    assert ("in use" in said) or (os.strerror(98).lower() in said.lower())
