"""`orchestrator completion`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from orchestrator.cli import shared


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to complete for.")], /
) -> int:
    """Print the completion script of a shell.

    For example:
      orchestrator completion bash > ~/.local/share/bash-completion/completions/orchestrator
      orchestrator completion zsh > ~/.zfunc/_orchestrator
      orchestrator completion fish > ~/.config/fish/completions/orchestrator.fish
    """
    from orchestrator.cli.app import build_app

    shared.print_text(build_app(complete=True).generate_completion(shell=shell))
    return shared.OK
