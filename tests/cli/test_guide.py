"""`convertrilo` without a command, on a terminal: a few questions, and an encode."""

import shutil
from pathlib import Path

from cli_help import CLIP, Terminal, convertrilo
from support import names_in


def asked(answers: list[tuple[str, str]], folder: Path) -> tuple[int, str]:
    """Answer the questions of the command in a terminal, and return its exit code and all that was to be seen."""
    terminal = Terminal(cwd=folder, stdout=True)
    for question, answer in answers:
        terminal.read_until(question)
        terminal.type(answer)
    code, _ = terminal.end()
    return code, terminal.shown


def test_the_questions_lead_to_an_encode_and_to_its_command(tmp_path: Path) -> None:
    shutil.copy(CLIP, tmp_path / "in.mp4")
    answers = [
        ("File or URL: ", "none.mp4\n"),
        ("there is no file none.mp4", "in.mp4\n"),
        ("Codec", "\n"),
        ("Maximum height", "480p\n"),
        ("Quality", "\n"),
        ("[in.h264.mp4]", "out.mp4\n"),
        ("Encode on this machine?", "y\n"),
    ]
    code, shown = asked(answers, tmp_path)
    assert code == 0, shown
    said = "convertrilo encode in.mp4 --codec h264 --resolution 480p --quality better -o out.mp4 --sandbox"
    assert f"The same as one command: {said}" in shown
    assert "out.mp4: " in shown
    assert names_in(tmp_path) == ["in.mp4", "out.mp4"]


def test_who_answers_no_more_ends_it(tmp_path: Path) -> None:
    code, shown = asked([("File or URL: ", "\x04")], tmp_path)  # Ctrl-D
    assert code == 130
    assert "convertrilo: interrupted" in shown


def test_where_nobody_can_be_asked_there_is_help(tmp_path: Path) -> None:
    done = convertrilo(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("Usage: convertrilo")
