"""All commands with their groups. Each is imported only when it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from cyclopts import App, Group

from orchestrator import __version__

_HELP: Final = """Keeps a pool of inference nodes on spot machines as dependable as on-demand.

Start with: orchestrator demo
"""

_EPILOGUE: Final = """Exit codes: 0 ok, 1 error, 2 usage, 3 daemon unreachable, 4 degraded or
starting, 5 below the floor, 6 paused, 7 down, 8 all on demand since spot cannot be had."""

_LOOK: Final = Group("Look", sort_key=1)
_OPERATE: Final = Group("Operate", sort_key=2)
_RUN: Final = Group("Run", sort_key=3)
_SET_UP: Final = Group("Set up", sort_key=4)

# command -> (group, function's name in the module of the same name); two words: a command of a family
COMMANDS: Final[dict[str, tuple[Group, str]]] = {
    "status": (_LOOK, "status"),
    "nodes": (_LOOK, "nodes"),
    "node": (_LOOK, "node"),
    "routes": (_LOOK, "routes"),
    "events": (_LOOK, "events"),
    "history": (_LOOK, "history"),
    "cost": (_LOOK, "cost"),
    "plan": (_LOOK, "plan"),
    "explain": (_LOOK, "explain"),
    "plan-capacity": (_LOOK, "plan_capacity"),
    "journal show": (_LOOK, "show"),
    "journal replay": (_LOOK, "replay"),
    "journal copy": (_LOOK, "copy"),
    "journal export": (_LOOK, "export"),
    "keys new": (_OPERATE, "new"),
    "keys list": (_OPERATE, "list_keys"),
    "keys revoke": (_OPERATE, "revoke"),
    "drain": (_OPERATE, "drain"),
    "undrain": (_OPERATE, "undrain"),
    "replace": (_OPERATE, "replace"),
    "gameday": (_OPERATE, "gameday"),
    "pause": (_OPERATE, "pause"),
    "resume": (_OPERATE, "resume"),
    "reload": (_OPERATE, "reload"),
    "demo": (_RUN, "demo"),
    "run": (_RUN, "run"),
    "gateway": (_RUN, "gateway"),
    "local-cloud": (_RUN, "local_cloud"),
    "simulate": (_SET_UP, "simulate"),
    "trace show": (_SET_UP, "show"),
    "trace convert": (_SET_UP, "convert"),
    "trace synthesise": (_SET_UP, "synthesise"),
    "balancer example": (_SET_UP, "print_example"),
    "aws bootstrap": (_SET_UP, "bootstrap"),
    "aws policy": (_SET_UP, "policy"),
    "validate": (_SET_UP, "validate"),
    "config show": (_SET_UP, "show"),
    "doctor": (_SET_UP, "doctor"),
    "support-bundle": (_SET_UP, "support_bundle"),
    "rules": (_SET_UP, "rules"),
    "dashboard": (_SET_UP, "dashboard"),
    "schema": (_SET_UP, "schema"),
    "completion": (_SET_UP, "completion"),
}
# first word of two-word commands, all in one module -> what the family is for
FAMILIES: Final[dict[str, str]] = {
    "aws": "What a pool on AWS needs there.",
    "balancer": "Load balancers of other makers in front of a pool.",
    "config": "The configuration as it is in force.",
    "keys": "The keys of the gateway's clients: who may ask for what, how much, until when.",
    "journal": "The daemon's journal on disk: what it holds, its turns decided again, a copy of it.",
    "trace": "Spot markets on disk: look at one, convert a public recording, make a synthetic one.",
}
HIDDEN: Final = frozenset({"local-cloud"})


def build_app(*, complete: bool = False) -> App:
    """The whole command line. Raises CycloptsError for wrong usage; commands return their exit code.

    `complete` imports every command, which only the overview of all commands needs.
    """
    app = App(
        name="orchestrator",
        help=_HELP,
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        help_formatter="default" if sys.stdout.isatty() else "plain",
        version=f"orchestrator {__version__}",
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    for place, (name, (group, function)) in enumerate(COMMANDS.items()):
        family, _, word = name.rpartition(" ")
        if family and family not in app:
            app.command(App(name=family, help=FAMILIES[family], group=group, sort_key=place))
        module = f"orchestrator.cli.{(family or name).replace('-', '_')}"
        command = getattr(import_module(module), function) if complete else f"{module}:{function}"
        (app[family] if family else app).command(
            command,
            name=word,
            group=None if family else group,
            show=name not in HIDDEN,
            sort_key=place,
            help_epilogue=_EPILOGUE if name == "status" else "",
        )
    return app


def command_of(words: Sequence[str]) -> str:
    """The command that the words of a command line name, as in COMMANDS or FAMILIES; empty if none."""
    named = [word for word in words if not word.startswith("-")]
    for count in (2, 1):
        name = " ".join(named[:count])
        if name in COMMANDS or name in FAMILIES:
            return name
    return ""
