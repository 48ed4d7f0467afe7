"""Which errors of a GPU mean that its node must be replaced.

What it decides: whether the Xid errors that a node's kernel log shows are the end of a GPU.
Why: a GPU that fell off the bus or holds corrupted memory may leave an engine that answers its health page
and gives wrong answers, or none. NVIDIA's catalogue advises a reset or a new board for these; on a cloud the
quickest reset is another machine.
Never: an error that a program can cause (13, 31, 43, 45, 94, ...) condemns a node; neither does a code that
is not listed, it is shown to people only.

Source: NVIDIA, GPU debug guidelines and the catalogue of Xid errors.

Example:
    >>> condemned([31, 79])
    'Xid 79: the GPU has fallen off the bus'
    >>> condemned([13, 43])
    ''
"""

from __future__ import annotations

from collections.abc import Iterable

FATAL = {
    48: "a double-bit error in GPU memory",
    64: "a failing row of GPU memory could not be replaced",
    79: "the GPU has fallen off the bus",
    95: "an uncontained error in GPU memory",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    140: "an unrecovered error in GPU memory",
}
"""Xid codes that condemn a node, and what they say."""


def condemned(xids: Iterable[int]) -> str:
    """Why a node with these Xid errors must be replaced, in words; empty when it need not."""
    return next((f"Xid {code}: {FATAL[code]}" for code in xids if code in FATAL), "")
