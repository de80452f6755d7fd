"""`convertrilo logout`: forgets what `login` has saved."""

import click

from convertrilo.cli.options import of_output
from convertrilo.cli.output import Output, note


@click.command()
@click.option("--profile", metavar="NAME", help="Which account to forget.  [default: default]")
@of_output
def logout(profile: str | None, output: Output) -> None:
    """Forget the saved key and access token. The key itself goes on working: `keys revoke` ends it."""
    from convertrilo.cli import settings

    name = settings.profile_name(profile)
    before, profiles = settings.saved()
    file = settings.save(name, dict.fromkeys(settings.VARIABLES))
    output.show({"profile": name, "path": str(file), "loggedOut": name in profiles})
    if before == settings.typescript_file() and before.exists():
        note(f"{before}, where the TypeScript command keeps its own settings, is left as it is, and read no more.")
