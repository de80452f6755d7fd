"""The command's entrance: its subcommands, and what every one of them does with errors and exit codes."""

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import click

from convertrilo._version import __version__

if TYPE_CHECKING:
    from convertrilo.errors import ConvertriloError

COMMANDS = {
    "encode": "Encode a local file, or a URL, to a local file.",
    "sandbox": "Serve a local Convertrilo that really encodes.",
}
"""Each is a command of the module of its name in this package, which is imported when it is called."""

EPILOG = """\b
Exit codes:
  0    it worked
  1    the job failed or was canceled, or the source is no video
  2    an option, a file or a setting is not right
  3    the service refused
  4    no answer, or not in time
  130  interrupted
"""


class _Commands(click.Group):
    """Knows its commands by name, so that help does not wait for what they need."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature, here and below
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"convertrilo.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        command.epilog = EPILOG
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__, prog_name="convertrilo")
def convertrilo() -> None:
    """Encode videos with Convertrilo, or on this machine with --sandbox.

    The API key is read from CONVERTRILO_API_KEY.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code; an error is one line on stderr."""
    try:
        convertrilo.main(list(arguments), prog_name="convertrilo", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message() + _where_to_look(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  # raised again unless it is one that people can do something about
        return _fail_of(_only(error))
    return 0


def _fail_of(error: Exception) -> int:
    from convertrilo.cli.interrupt import Interrupted
    from convertrilo.errors import ConvertriloError

    if isinstance(error, Interrupted):
        return _fail(str(error), 130)
    if isinstance(error, ConvertriloError):
        return _fail(_line(error), exit_code(error))
    raise error


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"convertrilo: {line}\n")
    return code


def _only(error: Exception) -> Exception:
    """Return what happened, without the groups that the tasks around it put it in."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _where_to_look(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "" if context is None else f" (see {context.command_path} --help)"


def _line(error: "ConvertriloError") -> str:
    """Return an error without what only a program wants to know of it."""
    from convertrilo.errors import APIError, ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(map(str, error.issues))
    if not isinstance(error, APIError):
        return error.message
    try:
        message = "; ".join(f"{each['path']} {each['message']}" for each in error.issues)
    except (TypeError, KeyError):
        message = error.message
    return f"{message} ({error.status} {error.code})"


def exit_code(error: "ConvertriloError") -> int:
    """Return the exit code that stands for an error."""
    from convertrilo import errors

    if isinstance(error, errors.JobFailedError | errors.JobCanceledError):
        return 1
    if isinstance(error, errors.APIError) and error.code == "probe_failed":
        return 1
    if isinstance(error, errors.ValidationError | errors.ConfigurationError):
        return 2
    if isinstance(error, errors.APIError) and not isinstance(error, errors.ServerError):
        return 3
    return 4
