"""`convertrilo sandbox`: a local Convertrilo on a port, until Ctrl-C."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from convertrilo.sandbox import Sandbox


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than loopback let other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="A folder that survives a restart.")
@click.option("--encoder", type=click.Choice(["ffmpeg", "instant"]), default="ffmpeg", show_default=True)
@click.option("--max-encodes", type=click.IntRange(1), help="How many jobs run at once.  [default: 2]")
@click.option("--seed", type=int, help="The same ids in every run.")
@click.option("--allow-private-sources", is_flag=True, help="Let source URLs point to this machine and its network.")
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
    """Serve a local Convertrilo that really encodes, until Ctrl-C.

    Prints the settings to paste into another terminal. Where it is served, / shows the jobs and /docs the API.
    """
    import logging

    import anyio

    from convertrilo.cli.extras import needing_the_sandbox
    from convertrilo.errors import ConfigurationError

    with needing_the_sandbox():
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
    except (OSError, RuntimeError) as error:  # the port is taken, or another sandbox has this state
        raise ConfigurationError(str(error)) from error


def _announce(local: "Sandbox", base_url: str) -> None:
    click.echo(f"export CONVERTRILO_BASE_URL={base_url}")
    click.echo(f"export CONVERTRILO_API_KEY={local.api_key}")
    click.echo(f"A sandbox is at {base_url}: its jobs at /, its API at /docs. Ctrl-C stops it.", err=True)
