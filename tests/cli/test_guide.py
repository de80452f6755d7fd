"""`convertrilo` without a command, on a terminal: a few questions, and an encode."""

import os
import pty
import shutil
from pathlib import Path

from cli_help import CLIP, COMMAND, convertrilo, names_in, read_terminal


def asked(answers: list[tuple[str, str]], folder: Path) -> tuple[int, str]:
    """Answer the questions of a command in a terminal, and return its exit code and all that was to be seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm", "COLUMNS": "200"}
        os.execv(COMMAND[0], COMMAND)
    shown = ""
    for question, answer in answers:
        seen = len(shown)
        while question not in shown[seen:]:
            shown += read_terminal(terminal).decode()
        os.write(terminal, answer.encode())
    while chunk := read_terminal(terminal):
        shown += chunk.decode()
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown


def test_the_questions_lead_to_an_encode_and_to_its_command(tmp_path: Path) -> None:
    shutil.copy(CLIP, tmp_path / "in.mp4")
    answers = [
        ("A file, or a URL: ", "none.mp4\n"),
        ("there is no file none.mp4", "in.mp4\n"),
        ("Codec", "\n"),
        ("At most so high", "480p\n"),
        ("Quality", "\n"),
        ("[in.h264.mp4]", "out.mp4\n"),
        ("Encode on this machine?", "y\n"),
    ]
    code, shown = asked(answers, tmp_path)
    assert code == 0, shown
    said = "convertrilo encode in.mp4 --codec h264 --resolution 480p --quality better -o out.mp4 --sandbox"
    assert f"The same in one line: {said}" in shown
    assert "out.mp4: " in shown
    assert names_in(tmp_path) == ["in.mp4", "out.mp4"]


def test_ctrl_c_ends_the_questions(tmp_path: Path) -> None:
    code, shown = asked([("A file, or a URL: ", "\x03")], tmp_path)
    assert code == 130
    assert "convertrilo: interrupted" in shown


def test_where_nobody_can_be_asked_there_is_help(tmp_path: Path) -> None:
    done = convertrilo(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("Usage: convertrilo")
