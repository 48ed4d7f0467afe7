"""Copies what the units of a node write to the machine's console until the engine serves, bounded.

So a boot that failed can be read with EC2's GetConsoleOutput, without a way into the machine. Runs as root
beside the engine: the console is a slow line, and an engine that wrote to it itself would wait for it.

Nothing is copied while the engine takes connections, since its log may then hold what users ask. Values of
its secrets are replaced, and lines are cut and thinned. Standard library and its neighbours `cloud.node_*`
only, Python 3.9 or newer, so that user-data can carry it.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cloud.node_aws import Aws, needed
from cloud.node_metadata import IMDS, Metadata, Refused, metadata_of

LONGEST_LINE = 240
BURST = 400  # lines at once; as many as a traceback and vLLM's own banner take
RATE = 4.0  # lines a second after that
HIDDEN = "[secret]"
OURS = ("node-start:", "node-disks:")
_TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|[Bb]earer +\S+)")
_LOOK_SECONDS = 2.0


class Thinner:
    """Lets lines through, `burst` at once and `rate` a second, and says how many it left out."""

    def __init__(self, now: float, burst: float = BURST, rate: float = RATE) -> None:
        self._tokens, self._burst, self._rate, self._at, self._left_out = burst, burst, rate, now, 0

    def lines(self, line: str, now: float) -> list[str]:
        """What to write for a line."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            self._left_out += 1
            return []
        self._tokens -= 1.0
        more = [f"({self._left_out} lines not shown)"] if self._left_out else []
        self._left_out = 0
        return [*more, line]


def cleaned(line: str, secrets: Iterable[str]) -> str:
    """One line without control characters, secrets or what is beyond its length.

    >>> cleaned("\\x1b[32mINFO\\x1b[0m token=hf_abcdefgh1234 key=s3cr3t!", ["s3cr3t!"])
    'INFO token=[secret] key=[secret]'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        line = line.replace(secret, HIDDEN)
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    line = _TOKENS.sub(HIDDEN, line)
    return "".join(c if c.isprintable() else " " for c in line)[:LONGEST_LINE]


class Engine:
    """What the console has to know of the engine: whether it serves, and the values of its secrets.

    The values are fetched as the engine gets them. Until all are known only our own lines are copied.
    """

    def __init__(self, given: Mapping[str, Any], imds: Metadata) -> None:
        self._arns, self._port, self._imds = tuple(given["secrets"].values()), int(given["port"]), imds
        self._looked_at, self.serves, self.known = -math.inf, False, False
        self.secrets: set[str] = set()

    def look(self, now: float) -> None:
        """Find out both, unless that was just done. What cannot be found out stays as it was."""
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            host = needed(self._imds, "meta-data/local-ipv4").strip()
            socket.create_connection((host, self._port), 1.0).close()
            self.serves, self.known = True, False  # the next process may get other values
            return
        except (OSError, Refused):
            self.serves = False
        if not self.known:
            try:
                aws = Aws(self._imds) if self._arns else None
                values = [aws.secret(arn) for arn in self._arns] if aws is not None else []
                # Whoever uses a secret takes the blanks around it off, which files of Windows bring.
                self.secrets |= {line.strip() for value in values for line in value.splitlines()} - {""}
                self.known = True
            except (Refused, OSError, ValueError, KeyError):
                pass  # the engine does not get them either, and says so


def copied(lines: Iterable[str], engine: Engine, thinner: Thinner, now: Callable[[], float]) -> Iterator[str]:
    """What goes to the console."""
    for line in lines:
        engine.look(now())
        ours = line.startswith(OURS)
        if line.strip() and not engine.serves and (engine.known or ours):
            yield from thinner.lines(cleaned(line, engine.secrets), now())


def main(file: str, *units: str) -> int:
    """Copy the units' lines until the journal ends. `file` describes the engine, see `cloud.node_start`."""
    imds = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS
    with open(file, encoding="utf-8") as source:
        engine = Engine(json.load(source), metadata_of(imds))
    journal = subprocess.Popen(
        ["journalctl", "-fqb", "-n", "all", "-o", "cat", *(f"-u{unit}" for unit in units)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    lines = (raw.decode("utf-8", "replace").rstrip() for raw in journal.stdout or ())
    thinner = Thinner(time.monotonic())  # noqa: TID251
    for line in copied(lines, engine, thinner, time.monotonic):  # noqa: TID251
        print(line, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
