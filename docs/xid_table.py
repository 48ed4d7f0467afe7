"""NVIDIA's catalogue of Xid errors as a table: docs/reference/xid.md."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from policies.gpu_errors import AS_OF, CATALOGUE, Bucket, Remedy, asked_for

_DONE: Final = {
    Remedy.NOTHING: "nothing",
    Remedy.PERSON: "alert only",
    Remedy.RESTART: "the engine's own health decides",
    Remedy.RESET: "the node drains and is replaced",
    Remedy.REPLACE: "the node drains and is replaced",
}

_HEAD: Final = f"""# Xid errors

What an Xid error in a node's kernel log asks for, by [NVIDIA's
catalogue](https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html) for Ampere and newer GPUs
as of {AS_OF}, and what is done [about it](gpus.md).

| Xid | says | immediate action | here |
|---|---|---|---|
"""

_TAIL: Final = """
Codes that are not in it are for people. 155 asks for a reset; by its own trigger conditions links that go to
sleep raise it too, so here it is for people. 154 is the driver's own word (since R565): GPU Reset Required,
Drain and Reset and Node Reboot Required replace the node, Drain P2P is left to the engine's health. NVLink
errors (74, 144 to 150) ask for what the registers in their text say, which are not decoded.
"""


def page() -> str:
    """The whole of xid.md; codes that follow each other and say the same share a row."""
    rows = []
    for (bucket, words), codes in groupby(sorted(CATALOGUE), key=CATALOGUE.__getitem__):
        group = list(codes)
        span = str(group[0]) if len(group) == 1 else f"{group[0]} to {group[-1]}"
        done = "by its text" if bucket is Bucket.XID_154 else _DONE[asked_for(group[0]).remedy]
        rows.append(f"| {span} | {words} | `{bucket}` | {done} |\n")
    return _HEAD + "".join(rows) + _TAIL
