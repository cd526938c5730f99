"""`keras-committee completion`: with which script does a shell complete what is typed?"""

import click
from click.shell_completion import get_completion_class

from keras_committee.cli.options import standard_options

COMPLETION_VARIABLE = "_KERAS_COMMITTEE_COMPLETE"
PROGRAM = "keras-committee"
_INSTALL_HINTS = {
    "bash": f'# In ~/.bashrc: eval "$({PROGRAM} completion bash)"',
    "zsh": f'# In ~/.zshrc: eval "$({PROGRAM} completion zsh)"',
    "fish": f"# Once: {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
}
# A knob goes on with its value: no blank after the equals sign. fish knows.
_NO_SPACE_PATCH = {
    "bash": (
        "    return 0\n",
        "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null\n    return 0\n",
    ),
    "zsh": (
        "        _describe -V unsorted completions_with_descriptions -U\n",
        "        local -a no_blank; [[ $completions_with_descriptions[1] == *=:* ]] && no_blank=(-S '')\n"
        '        _describe -V unsorted completions_with_descriptions -U "${no_blank[@]}"\n',
    ),
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL_HINTS)))
@standard_options
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes what is typed.

    It completes commands, options, recipes, runs, models and knobs.

    For bash: eval "$(keras-committee completion bash)", in ~/.bashrc.
    """
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"click knows no completion for {shell}.")
    script = completion_class(context.find_root().command, {}, PROGRAM, COMPLETION_VARIABLE).source()
    if shell in _NO_SPACE_PATCH:
        script = script.replace(*_NO_SPACE_PATCH[shell], 1)
    click.echo(f"{_INSTALL_HINTS[shell]}\n{script}")
