"""What commands have in common: exit codes, how to reach the daemon, how to print, names of nodes."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter, Token

from orchestrator.api.client import ControlClient, find_socket
from orchestrator.units import parse_duration

if TYPE_CHECKING:
    from orchestrator.config.load import Config
    from orchestrator.config.tables.file import Role
    from orchestrator.render.parts import Look

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
DEGRADED: Final = 4
BELOW_FLOOR: Final = 5
PAUSED: Final = 6
DOWN: Final = 7
ALL_ON_DEMAND: Final = 8
CHANGES: Final = 10
INTERRUPTED: Final = 130

_UNLIMITED: Final = 1000  # columns off a terminal, so that a pipe gets whole lines
_WIDE: Final = 200  # columns that `-o wide` takes at least


WhichPool = Annotated[
    str | None, Parameter(name="--pool", help="The pool that is meant, where the file has several.")
]


class CommandError(Exception):
    """A command cannot do what it was asked. The message is what to tell the user, without a traceback.

    `prefix` stands before it; faults of a file start with the file's name instead.
    """

    def __init__(self, message: str, exit_code: int = ERROR, prefix: str = "orchestrator: ") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.prefix = prefix


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach the daemon: --socket, --config, ORCHESTRATOR_SOCKET, ./state, or the service's socket."""

    socket: Annotated[
        Path | None,
        Parameter(help="The daemon's socket; else ORCHESTRATOR_SOCKET, ./state or that of the service."),
    ] = None
    config: Annotated[
        Path | None,
        Parameter(name=["--config", "-c"], help="The daemon's configuration file, to find its socket."),
    ] = None

    def client(self) -> ControlClient:
        """A client for that daemon; nothing is opened yet. Raises ClientError for an unreadable file."""
        return ControlClient(find_socket(self.socket, self.config))

    @property
    def flags(self) -> str:
        """The flags that make another command reach the same daemon."""
        if self.socket is not None:
            return f"--socket {shlex.quote(str(self.socket))}"
        return f"--config {shlex.quote(str(self.config))}" if self.config is not None else ""


def _seconds(_: type, tokens: Sequence[Token]) -> float:
    text = tokens[0].value
    try:
        value = float(text)
    except ValueError:
        return parse_duration(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} is not a length of time; write seconds, or a duration such as 90s")
    return value


def _duration(_: type, tokens: Sequence[Token]) -> float:
    return parse_duration(tokens[0].value)


def whole(_: type, tokens: Sequence[Token]) -> int:
    """A converter that takes whole numbers alone: 1.5 is a slip, and rounded it would be another number."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


Output = Annotated[
    Literal["table", "wide", "json"],
    Parameter(name=["--output", "-o"], help="How to print; json follows `orchestrator schema`."),
]
PoolName = Annotated[str | None, Parameter(name="--pool", help="Only this pool, of several.")]
PlainOutput = Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"], help="How to print.")]
Texts = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]
Seconds = Annotated[float, Parameter(converter=_seconds, metavar="SECONDS")]
Duration = Annotated[float, Parameter(converter=_duration, metavar="DURATION")]


def print_json(value: Any, *, compact: bool = False) -> None:
    """One JSON value on standard output; `compact` puts it on one line."""
    print(json.dumps(value, ensure_ascii=False, indent=None if compact else 2), flush=True)


def print_text(text: str) -> None:
    """Finished text on standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_files(folder: Path, texts: Mapping[str, str], anew: Collection[str] = ()) -> None:
    """Write files into a folder and print their paths; one that is there is left, unless it is made `anew`.

    Somebody may have changed it. Raises CommandError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            file = folder / name
            if name not in anew and file.exists():
                print(f"{file} is there already and is left as it is", file=sys.stderr)
                continue
            file.write_text(text, encoding="utf-8")
            print(file)
    except OSError as error:
        raise CommandError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def is_terminal() -> bool:
    """True when people read standard output directly."""
    return sys.stdout.isatty()


def look(output: str, flags: str = "") -> Look:
    """How to show things here and now: the terminal's width and colours, or plain whole lines for a pipe."""
    from orchestrator.render.parts import Look

    terminal = is_terminal()
    written = os.environ.get("COLUMNS", "")
    width = shutil.get_terminal_size().columns if terminal or written.isdigit() else _UNLIMITED
    wide = output == "wide"
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Look(width=max(width, _WIDE) if wide else max(40, width), colour=colour, wide=wide, flags=flags)


def wait(seconds: float) -> None:
    """Pause between two looks; Ctrl-C ends it."""
    threading.Event().wait(seconds)


def user_name() -> str:
    """Who runs the command, for the journal."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without an entry, as in many containers
        return f"uid {os.getuid()}"


def find_node(client: ControlClient, text: str) -> str:
    """The full id of the node whose id is or begins with `text`.

    A text that fits no living node is returned as it is: the journal may know a node that is gone.
    Raises CommandError when it fits several.
    """
    known = [node["id"] for pool in client.status()["pools"] for node in pool["nodes"]]
    if text in known:
        return text
    fitting = sorted(name for name in known if name.startswith(text))
    if len(fitting) > 1:
        shown = ", ".join(fitting[:5]) + (", ..." if len(fitting) > 5 else "")
        raise CommandError(f"{text} fits {len(fitting)} nodes ({shown}); write more of the id")
    return fitting[0] if fitting else text


def pool_of(client: ControlClient, node: str) -> str | None:
    """The pool that a living node is in; None for one that is in none."""
    pools = client.status()["pools"]
    return next((pool["name"] for pool in pools if any(n["id"] == node for n in pool["nodes"])), None)


def read_config(file: Path, role: Role = "any") -> Config:
    """A checked configuration for the process that plays `role`; its warnings go to standard error.

    Raises CommandError with every fault, one a line.
    """
    from cloud.startup import importing

    with importing():
        from orchestrator.config.load import ConfigError, load_config

    try:
        config = load_config(file, role)
    except ConfigError as error:
        raise CommandError(str(error), prefix="") from error
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return config


def one_pool(config: Config, pool: str | None, among: Collection[str] = ()) -> Config:
    """The configuration with one pool alone: the named one, else the only one, of those `among` if any are
    given. Raises CommandError where it is not clear which is meant."""
    from orchestrator.config.errors import meant

    names = list(among or config.pools)
    if pool is not None and pool not in config.pools:
        raise CommandError(f"there is no pool {pool!r}{meant(pool, config.pools)}", USAGE)
    if pool is None and len(names) > 1:
        raise CommandError(f"there are several pools; say which: --pool {' or '.join(names)}", USAGE)
    if not names:
        raise CommandError("there is no pool in the file")
    return config.only(pool or names[0])


def need_picture(flag: str, file: Path) -> None:
    """Say at once that a picture cannot be drawn into a file. Raises CommandError."""
    from orchestrator.pictures import NoPlace, PlotMissing, need_matplotlib, need_place

    try:
        need_matplotlib()
        need_place(file)
    except PlotMissing as error:
        raise CommandError(str(error)) from error
    except NoPlace as error:
        raise CommandError(f"{flag} {file}: {error}", USAGE) from error


def report_done(answer: Any, sentence: str, follow_up: str, output: str) -> None:
    """Say what an operator's command set going and what to type next."""
    if output == "json":
        print_json(answer)
        return
    said = answer.get("text") if isinstance(answer, dict) else None
    print(said or sentence)
    if follow_up:
        print(f"Next: {follow_up}")
