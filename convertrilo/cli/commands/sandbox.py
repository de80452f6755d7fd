"""`convertrilo sandbox`: serve a local Convertrilo on a port."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from convertrilo.sandbox import Sandbox


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any address but loopback lets other machines in.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder that keeps the sandbox's state across restarts.  [default: keep no state]",
)
@click.option(
    "--encoder",
    type=click.Choice(["ffmpeg", "instant"]),
    default="ffmpeg",
    show_default=True,
    help="ffmpeg encodes for real; instant answers with a tiny file.",
)
@click.option(
    "--max-encodes",
    type=click.IntRange(1),
    help="Maximum number of jobs that run at once.  [default: 2 with ffmpeg, 1000 with instant]",
)
@click.option(
    "--seed", type=int, help="Seed of the random ids; a fixed seed gives the same ids in every run.  [default: random]"
)
@click.option("--allow-private-sources", is_flag=True, help="Allow source URLs on this machine and its network.")
def sandbox(
    host: str,
    port: int,
    state: Path | None,
    encoder: Literal["ffmpeg", "instant"],
    max_encodes: int | None,
    seed: int | None,
    *,
    allow_private_sources: bool,
) -> None:
    """Serve a local Convertrilo that encodes for real, until Ctrl-C.

    The command prints the settings to paste into another terminal. The sandbox shows its jobs at / and its API at
    /docs.
    """
    import logging

    import anyio

    from convertrilo.cli.extras import requires_sandbox_extra
    from convertrilo.errors import ConfigurationError

    with requires_sandbox_extra():
        from convertrilo.sandbox import Sandbox, serve_until_stopped
    local = Sandbox(
        encoder=encoder,
        state=state,
        seed=seed,
        max_encodes=max_encodes,
        allow_private_sources=allow_private_sources,
    )

    async def serve() -> None:
        await serve_until_stopped(local, lambda base_url: _announce(local, base_url), host=host, port=port)

    logging.basicConfig()
    try:
        anyio.run(serve)
    except (OSError, RuntimeError) as error:  # the port or the state folder is in use
        raise ConfigurationError(str(error)) from error


def _announce(local: "Sandbox", base_url: str) -> None:
    click.echo(f"export CONVERTRILO_BASE_URL={base_url}")
    click.echo(f"export CONVERTRILO_API_KEY={local.api_key}")
    click.echo(f"The sandbox is at {base_url}: its jobs at /, its API at /docs. Ctrl-C stops it.", err=True)
