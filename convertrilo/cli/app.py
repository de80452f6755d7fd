"""The command's entry point: its subcommands, and how all of them turn errors into messages and exit codes."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from convertrilo._version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "encode": "Encode a local file or a URL.",
    "ingest": "Encode every video of an S3 folder exactly once.",
    "bulk": "Create the jobs of a JSON Lines file.",
    "status": "Show the status of a job.",
    "wait": "Wait until a job has ended.",
    "cancel": "Cancel a job.",
    "upload": "Upload the file of a job.",
    "download": "Download the output of a job.",
    "balance": "Show the token balance.",
    "webhooks": "List, create, change, test and inspect webhooks.",
    "keys": "List, create and revoke API keys.",
    "journal": "Inspect a journal: the operations sent and their answers.",
    "doctor": "Check settings, service, API key, tokens, clock and webhooks.",
    "login": "Save an API key, or log in with e-mail address and password.",
    "logout": "Remove the saved credentials.",
    "config": "Show and change the saved settings.",
    "sandbox": "Serve a local Convertrilo that encodes for real.",
    "completion": "Print a script that completes commands in a shell.",
}
"""The commands and their summaries. `convertrilo.cli.commands` has a module per command, imported when it is needed."""

EPILOG = """\b
Exit codes:
  0    success
  1    the job (or one of several) failed or was canceled, or the source is not a video
  2    an option, a file or a setting is wrong
  3    the service refused the request
  4    no answer from the service, or a timeout
  5    the credentials are missing or wrong, or do not allow this
  6    the account has too few tokens
  7    the outcome is unknown; repeating the command could do it twice
  130  interrupted
"""


class _Commands(click.Group):
    """A group that imports a command only when it is called, so that --help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature, here and below
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"convertrilo.cli.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        command.epilog = EPILOG
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem[Any]]":
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="convertrilo")
@click.pass_context
def convertrilo(ctx: click.Context) -> None:
    """Encode videos with Convertrilo, or on this machine with --sandbox.

    Without a command, convertrilo asks what to encode. Settings come from the options, from CONVERTRILO_API_KEY and
    CONVERTRILO_BASE_URL, or from the profile that `convertrilo login` has saved.
    """
    if ctx.invoked_subcommand is not None:
        return
    if sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty():
        from convertrilo.cli.guide import ask

        ctx.exit(run(ask()))
    click.echo(ctx.get_help())
    ctx.exit(2)


def run(arguments: Sequence[str]) -> int:
    """Run the command, print any error as one line on stderr, and return the exit code."""
    colour = False if os.environ.get("NO_COLOR") else None
    try:
        code = convertrilo.main(list(arguments), prog_name="convertrilo", standalone_mode=False, color=colour)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message() + _help_hint(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  # reraised unless the user can act on it
        return _fail_with(_unwrapped(error))
    return code if isinstance(code, int) else 0  # a code given to `ctx.exit`; a command itself returns None


def _fail_with(error: Exception) -> int:
    from convertrilo.cli import failures
    from convertrilo.cli.interrupt import Interrupted
    from convertrilo.errors import ConvertriloError

    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), error.exit_code)
    if isinstance(error, Interrupted):
        return _fail(str(error), failures.INTERRUPTED)
    if isinstance(error, ConvertriloError):
        return _fail(failures.error_line(error), failures.exit_code(error))
    if isinstance(error, OSError) and error.strerror:  # about a file or stdout
        what = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        return _fail("; ".join([what, *getattr(error, "__notes__", [])]), failures.USAGE)
    raise error


def _fail(message: str, code: int) -> int:
    from convertrilo.cli.output import note, readable

    note(f"convertrilo: {readable(' '.join(message.split()))}")
    return code


def _unwrapped(error: Exception) -> Exception:
    """Return the first error inside the exception groups that task groups put around it."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "" if context is None else f" (see {context.command_path} --help)"
