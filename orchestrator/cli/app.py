"""All commands with their groups. Each is imported only when it is used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

from cyclopts import App, Group

from orchestrator import __version__

_HELP: Final = """Keeps a pool of inference nodes on spot machines as dependable as on-demand.

Start with: orchestrator demo
"""

_EPILOGUE: Final = """Exit codes: 0 ok, 1 error, 2 usage, 3 daemon unreachable, 4 degraded,
5 below the on-demand floor, 6 paused."""

_LOOK: Final = Group("Look", sort_key=1)
_OPERATE: Final = Group("Operate", sort_key=2)
_RUN: Final = Group("Run", sort_key=3)
_SET_UP: Final = Group("Set up", sort_key=4)

# command -> (group, function's name in the module of the same name)
COMMANDS: Final[dict[str, tuple[Group, str]]] = {
    "status": (_LOOK, "status"),
    "nodes": (_LOOK, "nodes"),
    "node": (_LOOK, "node"),
    "events": (_LOOK, "events"),
    "plan": (_LOOK, "plan"),
    "explain": (_LOOK, "explain"),
    "drain": (_OPERATE, "drain"),
    "undrain": (_OPERATE, "undrain"),
    "pause": (_OPERATE, "pause"),
    "resume": (_OPERATE, "resume"),
    "demo": (_RUN, "demo"),
    "run": (_RUN, "run"),
    "gateway": (_RUN, "gateway"),
    "local-cloud": (_RUN, "local_cloud"),
    "validate": (_SET_UP, "validate"),
    "schema": (_SET_UP, "schema"),
    "completion": (_SET_UP, "completion"),
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
        module = f"orchestrator.cli.{name.replace('-', '_')}"
        command = getattr(import_module(module), function) if complete else f"{module}:{function}"
        app.command(
            command,
            name=name,
            group=group,
            show=name not in HIDDEN,
            sort_key=place,
            help_epilogue=_EPILOGUE if name == "status" else "",
        )
    return app
