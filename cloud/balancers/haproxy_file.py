"""Servers in HAProxy's own configuration, so that a restart or reload of HAProxy comes back with them.

The file is one of those that HAProxy is started with, and belongs to its operator but for what stands between
two marks inside its `backend` section:

    backend chat
        balance leastconn
        # BEGIN spot-orchestrator generation=1099511627779
        server so.i-1 10.0.0.5:8000 check inter 1s fall 3 rise 1 weight 256
        # END spot-orchestrator

Servers that drain are written as `disabled`: a process of HAProxy that has just started sends them nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.balancers.targets import MAX_GENERATION
from cloud.durable import write_atomic
from cloud.errors import Denied

BEGIN: Final = "# BEGIN spot-orchestrator"
END: Final = "# END spot-orchestrator"

_BLOCK: Final = re.compile(
    rf"^([ \t]*){BEGIN}(?: generation=(\d+))?[^\n]*\n(?:.*\n)??[ \t]*{END}[^\n]*$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Servers:
    """Lines of a `backend` section, and the generation of the set that they are."""

    generation: int
    lines: tuple[str, ...]


def generation_in(path: Path) -> int:
    """The generation of the set in a file; 0 where it holds none that can be read. Blocks on the disk."""
    try:
        found = _BLOCK.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return 0
    return _number(found[2] or "") if found is not None else 0


def _number(digits: str) -> int:
    """A generation; 0 for one that no daemon wrote."""
    return int(digits) if 0 < len(digits) <= len(str(MAX_GENERATION)) else 0


def write(path: Path, servers: Servers) -> None:
    """Put the servers between the marks of the file; one that holds them is left alone. Blocks on the disk.

    Raises Denied where the file has no marks or holds a higher generation; OSError.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    found = _BLOCK.findall(text)
    if len(found) != 1:
        what = "has no lines" if not found else "has more than one pair of lines"
        raise Denied(
            f"{path} {what} {BEGIN!r} and {END!r}: HAProxy would restart without its servers; write the two "
            "lines into its backend section, as `orchestrator balancer example haproxy` shows"
        )
    indent, held = found[0]
    if _number(held) > servers.generation:
        raise Denied(f"{path} holds generation {held}, newer than {servers.generation}: another daemon leads")
    block = [f"{BEGIN} generation={servers.generation}", *servers.lines, END]
    wanted = _BLOCK.sub(lambda _: "\n".join(indent + line for line in block), text)
    if wanted != text:
        mode = path.stat().st_mode & 0o777
        write_atomic(path, wanted.encode(errors="surrogateescape"), mode=mode)
