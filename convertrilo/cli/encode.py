"""`convertrilo encode`: its arguments and options."""

from pathlib import Path
from typing import Any, get_args

import click

from convertrilo.models import BitrateTier, Codec, Container, Preset, Priority, Quality, Resolution


def _choice(literal: Any) -> click.Choice[str]:
    return click.Choice(get_args(literal))


@click.command()
@click.argument("source")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to put the result.")
@click.option("--codec", type=_choice(Codec), default="h264", show_default=True)
@click.option("--resolution", type=_choice(Resolution), default="1080p", show_default=True, help="At most so high.")
@click.option("--fps", type=click.IntRange(1, 240), default=30, show_default=True, help="Frames a second.")
@click.option("--container", type=_choice(Container), help="By default the output's suffix says it, or else mp4.")
@click.option("--preset", type=_choice(Preset), help="How much time to spend on quality.")
@click.option("--bitrate-tier", type=_choice(BitrateTier))
@click.option("--quality", type=_choice(Quality))
@click.option("--passes", type=click.IntRange(1, 2), help="For a file only.")
@click.option("--priority", type=_choice(Priority), help="For a URL only.")
@click.option("--external-id", help="Your own name for the job; the same one twice is the same job.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE|JSON", help="Given back with the job; may be repeated.")
@click.option("--idempotency-key", help="The same key twice is the same job.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=3600.0, show_default=True, help="Seconds.")
@click.option("--sandbox", is_flag=True, help="Encode on this machine, with no account and no network.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Print errors and JSON only.")
def encode(source: str, **options: Any) -> None:
    """Encode SOURCE, a local file or an http(s) URL, to a local file."""
    import anyio

    from convertrilo.cli.encoding import Encoding

    anyio.run(Encoding.of(source, options).run)
