"""`convertrilo logout`: remove the saved credentials."""

import click

from convertrilo.cli.options import output_options
from convertrilo.cli.output import Output, note


@click.command()
@click.option("--profile", metavar="NAME", help="The profile to remove.  [default: CONVERTRILO_PROFILE, or default]")
@output_options
def logout(profile: str | None, output: Output) -> None:
    """Remove the saved API key and access token. The key itself stays valid until `keys revoke`."""
    from convertrilo.cli import settings

    name = settings.profile_name(profile)
    before, profiles = settings.saved()
    file = settings.save(name, dict.fromkeys(settings.VARIABLES))
    output.show({"profile": name, "path": str(file), "loggedOut": name in profiles})
    if before == settings.typescript_file() and before.exists():
        note(f"{before} belongs to the TypeScript command: it is not changed, and no longer read.")
