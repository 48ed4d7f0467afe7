"""The page of the gateway's fault modes, from the table that its tests play."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

sys.path.insert(
    0, str(Path(__file__).parent.parent)
)  # the tests are modules of the repository, not installed

from tests.orchestrator.gateway.faults import table

_HEAD: Final = """# Faults of nodes, and what clients get

<!-- Made by docs/generate.py from tests/orchestrator/gateway/faults/table.py. Do not edit. -->

Every row is played over real sockets: three nodes, a gateway with default settings, clients that each keep
one connection. The `openai` and `anthropic` SDKs judge, with their own retries off, and the text: each answer
names its request. A row says what a request gets that meets the fault while one of three nodes has it, while
two have it, and while all have it. Requests that do not meet it get their whole answer, and so do those that
follow on the same connections once the nodes are well.

| outcome | the client has |
|---|---|
| whole | the exact answer of its request, with the reason why it ended |
| error event | a true beginning of the answer, then an error that its SDK raises |
| a number | an error of this status in the shape of its dialect, with the request's id |
| as said | what the node said: nothing can tell that it is wrong |
| refused | the engine's own error event, which blames the request |

A 429 and a 503 carry a `Retry-After`. No outcome lets a part be taken for the whole. *ids*: a stream on nodes
that tell token ids; it is finished on another node. *Settings* are the defaults, except the times (s) and
sizes (bytes) in the last column, which are scaled down where a mode waits for them, and the quiet time that
nodes earn while all are faulty, for the requests that follow.
"""

_WORDS: Final = {"broken": "error event", "wrong": "as said"}
_COLUMNS: Final = "| fault | requests | one of three | two | all | settings |\n|---|---|---|---|---|---|"


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, modes in table.SECTIONS.items():
        rows = "\n".join(_row(mode) for mode in modes)
        parts.append(f"## {title}\n\n{_COLUMNS}\n{rows}\n")
    return "\n".join(parts)


def _row(mode: table.Mode) -> str:
    requests = ", ".join(str(carrier).replace("-", " ").replace("_", " ") for carrier in mode.on)
    settings = ", ".join(f"`{name}` {value}" for name, value in mode.settings.items())
    outcomes = " | ".join(_outcomes(mode.right(faulty)) for faulty in (1, 2, 3))
    return f"| {mode.about} | {requests} | {outcomes} | {settings} |"


def _outcomes(right: tuple[table.Outcome, ...]) -> str:
    return " or ".join(_WORDS.get(str(outcome), str(outcome)) for outcome in right)
