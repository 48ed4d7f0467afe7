"""NVIDIA's catalogue of Xid errors as data: what each code says, and what it asks for at once.

What it decides: what an Xid error in a node's kernel log asks for: nothing, a restart of the engine, a reset
of the GPU, another node, or a person.
Why: a GPU that fell off the bus or holds corrupted memory may leave an engine that answers its health page
and gives wrong answers, or none; a program's own fault costs that program alone. Which is which, NVIDIA says.
Never: an error that a program can cause (13, 31, 43, 45, 94, ...) or a code that is not listed replaces a
node.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog", column "Resolution Bucket (Immediate Action)",
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, as of 2026-09-09, for Ampere and newer
GPUs; read on 2026-11-30 in a stored copy and two public transcriptions, which agree where they overlap. The
words for each code are this project's. Codes from 162 on have no action there yet; unused ones are left out.

Example:
    >>> asked_for(79)
    Asked(remedy=<Remedy.REPLACE: 'replace'>, text='Xid 79: the GPU has fallen off the bus')
    >>> asked_for(31).remedy, asked_for(43).remedy, asked_for(12345).remedy
    (<Remedy.RESTART: 'restart'>, <Remedy.NOTHING: 'nothing'>, <Remedy.PERSON: 'person'>)
    >>> asked_for(154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)")
    Asked(remedy=<Remedy.REPLACE: 'replace'>, text='Xid 154: the driver asks for: Node Reboot Required')
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from policies.value import value

AS_OF: Final = "2026-09-09"
"""The date of the catalogue that these are from."""


class Bucket(StrEnum):
    """The catalogue's own names of immediate actions."""

    IGNORE = "IGNORE"
    RESTART_APP = "RESTART_APP"
    RESET_GPU = "RESET_GPU"
    RESTART_VM = "RESTART_VM"
    RESTART_BM = "RESTART_BM"
    CONTACT_SUPPORT = "CONTACT_SUPPORT"
    CHECK_MECHANICALS = "CHECK_MECHANICALS"
    CHECK_UVM = "CHECK_UVM"
    UPDATE_SWFW = "UPDATE_SWFW"
    WORKFLOW_XID_45 = "WORKFLOW_XID_45"  # alone: restart the fabric manager; else what came before it counts
    WORKFLOW_XID_48 = "WORKFLOW_XID_48"  # alone: reset; with 63 or 64: drain and reset
    WORKFLOW_NVLINK_ERR = "WORKFLOW_NVLINK_ERR"  # by the registers in its text
    WORKFLOW_NVLINK5_ERR = "WORKFLOW_NVLINK5_ERR"  # by the registers in its text
    XID_154 = "XID_154"  # what the driver says in its text


class Remedy(StrEnum):
    """What a fault asks for, from the least to the most."""

    NOTHING = "nothing"
    PERSON = "person"  # a person must look; nothing is done to the node
    RESTART = "restart"  # of the engine
    RESET = "reset"  # of the GPU, with nothing running on it
    REPLACE = "replace"  # the machine must boot anew, or another one take its place


@value
class Asked:
    """What an error asks for, and why in words."""

    remedy: Remedy
    text: str


REMEDIES: Final[Mapping[Bucket, Remedy]] = {
    Bucket.IGNORE: Remedy.NOTHING,
    Bucket.RESTART_APP: Remedy.RESTART,
    Bucket.RESET_GPU: Remedy.RESET,
    Bucket.RESTART_VM: Remedy.REPLACE,
    Bucket.RESTART_BM: Remedy.REPLACE,
    Bucket.CONTACT_SUPPORT: Remedy.PERSON,
    Bucket.CHECK_MECHANICALS: Remedy.PERSON,
    Bucket.CHECK_UVM: Remedy.PERSON,
    Bucket.UPDATE_SWFW: Remedy.PERSON,
    Bucket.WORKFLOW_XID_45: Remedy.NOTHING,
    Bucket.WORKFLOW_XID_48: Remedy.RESET,
    Bucket.WORKFLOW_NVLINK_ERR: Remedy.PERSON,
    Bucket.WORKFLOW_NVLINK5_ERR: Remedy.PERSON,
    Bucket.XID_154: Remedy.NOTHING,
}
"""What each of the catalogue's actions comes to here. The registers in the text of an NVLink error are not
decoded: a person is notified, and an engine that it stops is replaced as one that does not answer."""

_RECOVERY: Final[Mapping[str, Remedy]] = {
    "drain p2p": Remedy.RESTART,
    "drain and reset": Remedy.RESET,
    "gpu reset required": Remedy.RESET,
    "node reboot required": Remedy.REPLACE,
}
"""What the driver may say that it needs (Xid 154, since driver R565), in lower case."""

_CHANGED: Final = re.compile(r"to 0x[0-9a-fA-F]+ \(([^)]{1,40})\)")

_HARMLESS: Final[Mapping[int, str]] = {155: "links that go to sleep raise it too"}
"""Codes of which the catalogue's own trigger conditions say that a healthy GPU raises them: for people."""

_PARTS: Final = {
    "copy engine": (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)),
    "video decoder": (68, 83, 84, 88, 89, 96, 97, 98),
    "image decoder": (82, *range(99, 106)),
    "optical flow engine": (86, 139),
    "security engine": (60,),
}
"""Parts of a GPU whose errors all ask for the same, with the codes of the first, second, ... one of each."""

CATALOGUE: Final[Mapping[int, tuple[Bucket, str]]] = {
    **{
        code: (Bucket.RESTART_APP, f"an error of {part} {number}")
        for part, codes in _PARTS.items()
        for number, code in enumerate(codes)
    },
    8: (Bucket.RESTART_APP, "the GPU stopped processing: a channel timed out"),
    11: (Bucket.RESTART_APP, "an invalid or corrupted stream of commands"),
    13: (Bucket.RESTART_APP, "an exception in the graphics engine"),
    14: (Bucket.IGNORE, "an error that was made for a test"),
    25: (Bucket.RESTART_APP, "an invalid or illegal stream of commands"),
    31: (Bucket.RESTART_APP, "a page fault in GPU memory"),
    32: (Bucket.RESTART_APP, "an invalid or corrupted stream of commands"),
    37: (Bucket.IGNORE, "a method that the firmware does not know"),
    38: (Bucket.IGNORE, "the firmware's watchdog ran out"),
    43: (Bucket.IGNORE, "the GPU stopped processing for a program"),
    44: (Bucket.IGNORE, "a fault at a switch of contexts"),
    45: (Bucket.WORKFLOW_XID_45, "a program was cleaned up after an earlier error"),
    46: (Bucket.RESET_GPU, "the GPU stopped processing: it timed out"),
    48: (Bucket.WORKFLOW_XID_48, "a double-bit error in GPU memory"),
    54: (Bucket.CHECK_MECHANICALS, "clocks are reduced: auxiliary power may not be connected"),
    62: (Bucket.RESET_GPU, "the GPU's power management controller halted"),
    63: (Bucket.IGNORE, "a row of GPU memory was marked to be replaced"),
    64: (Bucket.RESET_GPU, "a failing row of GPU memory could not be replaced"),
    66: (Bucket.IGNORE, "an illegal access to a register by a driver"),
    67: (Bucket.IGNORE, "the firmware could not be verified"),
    69: (Bucket.RESTART_APP, "a graphics engine class error"),
    74: (Bucket.WORKFLOW_NVLINK_ERR, "an error of an NVLink"),
    78: (Bucket.UPDATE_SWFW, "a virtual GPU could not start"),
    79: (Bucket.RESTART_BM, "the GPU has fallen off the bus"),
    80: (Bucket.RESTART_APP, "corrupted data sent to the GPU"),
    92: (Bucket.IGNORE, "many corrected errors in GPU memory"),
    93: (Bucket.IGNORE, "the information ROM is written too often"),
    94: (Bucket.RESTART_APP, "a contained error in GPU memory"),
    95: (Bucket.RESET_GPU, "an uncontained error in GPU memory"),
    106: (Bucket.IGNORE, "a test message"),
    107: (Bucket.IGNORE, "a silent test message"),
    108: (Bucket.IGNORE, "an address that a remote NVLink could not translate"),
    109: (Bucket.RESET_GPU, "a switch of contexts timed out"),
    110: (Bucket.RESET_GPU, "a security fault"),
    119: (Bucket.RESET_GPU, "the GPU's system processor does not answer"),
    120: (Bucket.RESET_GPU, "the GPU's system processor failed"),
    121: (Bucket.IGNORE, "a corrected error between chips"),
    136: (Bucket.RESET_GPU, "the training of a link failed"),
    137: (Bucket.IGNORE, "a fault of remote memory over NVLink"),
    140: (Bucket.RESET_GPU, "an unrecovered error in GPU memory"),
    141: (Bucket.IGNORE, "an error on a channel's fast path"),
    142: (Bucket.CONTACT_SUPPORT, "an error of video encoder 3"),
    143: (Bucket.RESET_GPU, "the GPU could not be initialised"),
    **dict.fromkeys(range(144, 151), (Bucket.WORKFLOW_NVLINK5_ERR, "an error of an NVLink")),
    151: (Bucket.RESTART_VM, "the keys of a channel could not be changed"),
    152: (Bucket.IGNORE, "a memory fault of a deep learning accelerator"),
    153: (Bucket.IGNORE, "a deep learning accelerator timed out"),
    154: (Bucket.XID_154, "the driver asks for nothing"),
    155: (Bucket.RESET_GPU, "an error of an NVLink that software defines"),
    156: (Bucket.RESET_GPU, "a part of the GPU was retired"),
    157: (Bucket.IGNORE, "a part of the GPU could not be retired"),
    158: (Bucket.RESET_GPU, "the GPU timed out, and cannot go on"),
    159: (Bucket.CHECK_UVM, "an error between chips"),
    160: (Bucket.IGNORE, "a channel of memory was retired"),
    161: (Bucket.IGNORE, "a channel of memory could not be retired"),
}
"""By code: the immediate action, and what the code says."""


def asked_for(code: int, text: str = "") -> Asked:
    """What an Xid asks for. `text`: what follows the code in the kernel log, which only 154 needs."""
    if code not in CATALOGUE:
        return Asked(remedy=Remedy.PERSON, text=f"Xid {code}: not in the catalogue")
    bucket, words = CATALOGUE[code]
    remedy = REMEDIES[bucket]
    if code in _HARMLESS:
        remedy, words = Remedy.PERSON, f"{words}; {_HARMLESS[code]}"
    if bucket is Bucket.XID_154 and (said := _CHANGED.search(text)) is not None:
        remedy = _RECOVERY.get(said[1].lower(), Remedy.NOTHING)
        words = f"the driver asks for: {said[1]}"
    return Asked(remedy=remedy, text=f"Xid {code}: {words}")


def gravest(asked: Iterator[Asked]) -> Asked:
    """The one that asks for most, the first of several; one that asks for nothing where there is none."""
    order = list(Remedy)
    return max(asked, key=lambda a: order.index(a.remedy), default=Asked(remedy=Remedy.NOTHING, text=""))
