"""`keras-committee completion`: print a shell completion script."""

import click
from click.shell_completion import BashComplete, ZshComplete, add_completion_class, get_completion_class

from keras_committee.cli.options import standard_options

_COMPLETION_VARIABLE = "_KERAS_COMMITTEE_COMPLETE"
_PROGRAM = "keras-committee"
_INSTALL_HINTS = {
    "bash": f'# In ~/.bashrc: eval "$({_PROGRAM} completion bash)"',
    "zsh": f'# In ~/.zshrc: eval "$({_PROGRAM} completion zsh)"',
    "fish": f"# Once: {_PROGRAM} completion fish > ~/.config/fish/completions/{_PROGRAM}.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL_HINTS)))
@standard_options
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell completion script.

    The script completes commands, options, recipes, recipe parameters, runs and exported models. To enable it in bash,
    add this line to ~/.bashrc:

    \b
        eval "$(keras-committee completion bash)"
    """
    completion_class = get_completion_class(shell)
    script = completion_class(  # pyright: ignore[reportOptionalCall]
        context.find_root().command, {}, _PROGRAM, _COMPLETION_VARIABLE
    ).source()
    click.echo(f"{_INSTALL_HINTS[shell]}\n{script}")


# Both scripts below are click's, changed in one point: no space follows `NAME=`, so that the value can be typed. The
# fish script of click does that already.
@add_completion_class
class _BashCompleteWithoutSpace(BashComplete):
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local response

    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=($value)
        fi
    done

    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class _ZshCompleteWithoutSpace(ZshComplete):
    source_template = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a completions
    local -a completions_with_descriptions
    local -a response
    (( ! $+commands[%(prog_name)s] )) && return 1

    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete %(prog_name)s)}")

    for type key descr in ${response}; do
        if [[ "$type" == "plain" ]]; then
            if [[ "$descr" == "_" ]]; then
                completions+=("$key")
            else
                completions_with_descriptions+=("$key":"$descr")
            fi
        elif [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        fi
    done

    if [ -n "$completions_with_descriptions" ]; then
        local -a no_space
        [[ $completions_with_descriptions[1] == *=:* ]] && no_space=(-S '')
        _describe -V unsorted completions_with_descriptions -U "${no_space[@]}"
    fi

    if [ -n "$completions" ]; then
        compadd -U -V unsorted -a completions
    fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""  # noqa: E501
