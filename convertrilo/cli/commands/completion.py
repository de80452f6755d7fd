"""`convertrilo completion`: print a script that completes commands and options in a shell."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    bash   eval "$(convertrilo completion bash)" in ~/.bashrc
    zsh    eval "$(convertrilo completion zsh)" in ~/.zshrc
    fish   convertrilo completion fish > ~/.config/fish/completions/convertrilo.fish
    """  # noqa: D301  # click needs the backspace character
    from click.shell_completion import get_completion_class

    from convertrilo.cli.app import convertrilo

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(convertrilo, {}, "convertrilo", "_CONVERTRILO_COMPLETE").source())
