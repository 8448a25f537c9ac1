"""The command `diffusion-lab completion`: completion of commands, groups, options and keys with the Tab key."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Sequence

from diffusion_lab.cli import COMMANDS, command
from diffusion_lab.errors import ConfigError

HELP = """\
Print a script that completes the arguments of diffusion-lab with the Tab key.

  eval "$(diffusion-lab completion bash)"      in ~/.bashrc
  eval "$(diffusion-lab completion zsh)"       in ~/.zshrc, after compinit
  diffusion-lab completion fish | source       in ~/.config/fish/config.fish

For train, sample, stats, verify, export and import, it completes groups, options and keys, also of --config-dir.
"""

BASH = r"""
_diffusion_lab() {
    local IFS=$'\n' line="${COMP_LINE:0:$COMP_POINT}"
    local word="${line##*[[:space:]]}"
    COMPREPLY=($(diffusion-lab completion query "$line" 2>/dev/null))
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then  # bash completes only what follows the =
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
    if [[ ${#COMPREPLY[@]} == 1 && "${COMPREPLY[*]}" != *[=./] ]]; then
        compopt +o nospace 2>/dev/null
    fi
}
complete -o nospace -o default -F _diffusion_lab diffusion-lab
"""

SCRIPTS = {
    "bash": BASH,
    "zsh": f"autoload -Uz bashcompinit && bashcompinit\n{BASH}",
    "fish": "complete -c diffusion-lab -a '(diffusion-lab completion query (commandline -cp | string collect))'\n",
}


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Print the script of a shell; for `query LINE`, which the scripts call, the possible last words of a line."""
    shell, *rest = arguments
    if shell == "query" and rest:
        print_candidates(rest[0])
    elif shell in SCRIPTS:
        print(SCRIPTS[shell], end="")
    else:
        raise ConfigError(f"completion {shell} does not exist: choose {', '.join(SCRIPTS)}")


def print_candidates(line: str) -> None:
    """Print what the last word of a command line may become, one candidate per line."""
    _, *words, typed = [*line.split(), *([""] if line[-1:].isspace() else [])]
    if not words:
        found = list(COMMANDS)
    elif words[0] not in COMMANDS:
        found = []
    else:
        found, task = list(COMMANDS[words[0]].keys), COMMANDS[words[0]].composes
        found += overrides(task, [*words[1:], typed]) if task else []
    for name in found:
        if name.startswith(typed) and not (name == typed and name.endswith("=")):  # files follow
            print(name)


def overrides(task: str, words: Sequence[str]) -> list[str]:
    """Candidates of Hydra's own completion, with the configuration directories that the command line names."""
    from diffusion_lab.config.command_line import options, separate

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(Exception, SystemExit):
        sys.argv = [task, "-sc", "query=fish", *options(separate(words[:-1])[0])]  # fish: one candidate per line
        os.environ["COMP_LINE"] = " ".join([task, *words])
        runpy.run_module(f"diffusion_lab.{task}", run_name="__main__", alter_sys=True)
    return printed.getvalue().splitlines()


if __name__ == "__main__":
    main(sys.argv[1:])
