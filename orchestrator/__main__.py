"""The command line's entry: `orchestrator`, or `python -m orchestrator`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import CycloptsError

from orchestrator.api.client import ClientError
from orchestrator.cli import shared
from orchestrator.cli.app import COMMANDS, build_app, command_of

_WATCH: Final = ("--watch", "-w")
_WATCH_SECONDS: Final = "2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. What the user can fix is one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app = build_app(complete=command_of(given) not in COMMANDS)
        result = app(_with_watch_seconds(given))
        sys.stdout.flush()
    except CycloptsError as error:
        help_of = f"orchestrator {command_of(given)}".strip()
        text = str(error)
        text = text if text.endswith("...") else text.rstrip(".")
        _complain(f"{text}; see `{help_of} --help`")
        return shared.USAGE
    except shared.CommandError as error:
        _complain(str(error), error.prefix)
        return error.exit_code
    except ClientError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return shared.INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone; keep the interpreter from complaining about it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return shared.OK
    return result if isinstance(result, int) else shared.OK


def _with_watch_seconds(arguments: Sequence[str]) -> list[str]:
    """The same arguments, where `--watch` without a number gets its default."""
    filled: list[str] = []
    for place, word in enumerate(arguments):
        filled.append(word)
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if word in _WATCH and not following[:1].isdigit():
            filled.append(_WATCH_SECONDS)
    return filled


def _complain(text: str, prefix: str = "orchestrator: ") -> None:
    print(f"{prefix}{text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
