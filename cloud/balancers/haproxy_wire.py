"""HAProxy's runtime API: one exchange over its socket, and the tables that it prints.

Source: HAProxy's management guide, sections 9.1 (CSV format), 9.3 (Unix socket commands), and
`srv_admin_state` in `show servers state`. Commands of one line are separated by ";", answers by an empty
line; a command that fails does not stop those after it.
"""

from __future__ import annotations

import asyncio
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.balancers.exchange import count, generation_in, read_as_ours
from cloud.balancers.targets import MAX_BYTES
from cloud.errors import Denied, Uncertain
from policies.model import Target, TargetState

_LINE: Final = 8000
"""Characters of a line of commands; HAProxy takes one of tune.bufsize bytes, 16384 unless it is set."""

_CHUNK: Final = 1 << 18  # bytes

_MAINT: Final = 0x01 | 0x02 | 0x20 | 0x40  # forced, inherited, no address, by a failed name
_DRAIN: Final = 0x08 | 0x10  # forced, inherited

_VALUE: Final = re.compile(r"value=<([^>]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of a backend. `state`: "ready", "drain" or "maint"."""

    name: str
    address: str
    state: str
    weight: int
    target: Target  # under the name of the server


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A backend as one look shows it. `life`: the process and the word that was left in it, if any."""

    pid: str
    life: str
    generation: int
    servers: Mapping[str, Server]


async def exchange(socket: Path, commands: Sequence[str], timeout: float) -> str:
    """Run commands in order; all that HAProxy said. Raises Uncertain."""
    said = []
    for line in _lines(commands):
        try:
            async with asyncio.timeout(timeout):
                said.append(await _ask(socket, line))
        except TimeoutError:
            raise Uncertain(f"HAProxy at {socket} did not answer within {timeout:g} s") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise Uncertain(f"HAProxy at {socket} cannot be reached: {reason}") from None
    return "".join(said)


async def look(socket: Path, backend: str, variables: tuple[str, str], timeout: float) -> Look:
    """Read a backend and the variables that hold generation and word. Raises Denied, Uncertain."""
    generation, word = variables
    said = await exchange(
        socket,
        [
            "show info",
            f"show stat {backend} 4 -1",
            f"show servers state {backend}",
            f"get var {generation}",
            f"get var {word}",
        ],
        timeout,
    )
    if "\n# pxname," not in said:
        if "No such proxy." in said:
            raise Denied(f"HAProxy at {socket} has no backend {backend!r}: correct its name, or add it there")
        if "Permission denied" in said:
            raise Denied(f"the socket {socket} of HAProxy permits nothing: write `level admin` at its line")
        raise _broken_off(socket, said)
    info, _, tables = said.partition("# pxname,")
    stat, _, rest = tables.partition("\n\n")
    facts = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    if facts.get("Stopping", "0") != "0":
        raise Uncertain(f"the process of HAProxy that listens at {socket} is ending; another takes its place")
    states, _, held = rest.partition("\n\n")
    values = [found[1] if (found := _VALUE.search(part)) else "" for part in held.split("\n\n")]
    if len(values) <= len(variables):  # an empty line ends each answer
        raise _broken_off(socket, said)
    with read_as_ours(f"HAProxy at {socket}"):
        return Look(
            pid=facts.get("Pid", ""),
            life=f"{facts.get('Pid', '')}.{values[1]}",
            generation=generation_in(values[0]) if values[0].isdecimal() else 0,
            servers={server.name: server for server in _servers(f"pxname,{stat}", _admin(states))},
        )


def _broken_off(socket: Path, said: str) -> Uncertain:
    return Uncertain(f"HAProxy at {socket} did not say all that it was asked for: {said[-200:]!r}")


async def _ask(socket: Path, line: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(line.encode() + b"\n")
        await writer.drain()
        said = bytearray()
        while chunk := await reader.read(_CHUNK):
            said += chunk
            if len(said) > MAX_BYTES:
                raise OSError(f"it says more than {MAX_BYTES} bytes")
        return said.decode(errors="replace")
    finally:
        writer.close()


def _lines(commands: Sequence[str]) -> Iterator[str]:
    """Commands in lines that HAProxy can hold."""
    line = ""
    for command in commands:
        if line and len(line) + len(command) > _LINE:
            yield line
            line = ""
        line = f"{line}; {command}" if line else command
    if line:
        yield line


def _admin(states: str) -> Mapping[str, int]:
    """`srv_admin_state` by server."""
    rows = (line.split(" ") for line in states.splitlines())
    return {row[3]: int(row[6]) for row in rows if len(row) > 6 and row[6].isdigit()}


def _servers(stat: str, admin: Mapping[str, int]) -> Iterator[Server]:
    for row in csv.DictReader(stat.splitlines()):
        name, bits = row["svname"], admin.get(row["svname"], 0)
        state = "maint" if bits & _MAINT else "drain" if bits & _DRAIN else "ready"
        reason = " ".join(filter(None, (row["check_status"], row["last_chk"])))
        target = Target(
            id=name,
            address=row["addr"],
            state=_state(state, row),
            in_flight=count(int(row["scur"])) + count(int(row["qcur"])),
            reason="" if row["check_status"] in ("L7OK", "L4OK") else reason,
        )
        # `weight` is what it has now, `uweight` what was asked for: they differ while it starts slowly.
        weight = int(row.get("uweight") or row["weight"])
        yield Server(name=name, address=row["addr"], state=state, weight=weight, target=target)


def _state(state: str, row: Mapping[str, str]) -> TargetState:
    if state != "ready":
        return TargetState.DRAINING if state == "drain" else TargetState.UNUSED
    if row["check_status"] in ("", "INI") and not row["status"].startswith("no check"):
        return TargetState.INITIAL
    up = row["status"].startswith(("UP", "no check"))
    return TargetState.HEALTHY if up else TargetState.UNHEALTHY
