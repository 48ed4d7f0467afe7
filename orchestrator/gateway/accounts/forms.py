"""Whether a multipart form says the same to every reader (RFC 7578).

A key may be for some models, and the engine reads a form with another parser than the gateway does. Where the
two could find different fields, in a boundary that is given twice, say, or in a part with two names, the
gateway must not judge by what it found itself.
"""

from __future__ import annotations

import re
from typing import Final

_KIND: Final = re.compile(r"""multipart/form-data; ?boundary=("?)([A-Za-z0-9'()+_,./:=?-]{1,70})\1""")
_LINE: Final = re.compile(rb"(?P<name>[A-Za-z-]+): (?P<value>[\x20-\x7e\x80-\xff]*)")
_DISPOSITION: Final = re.compile(
    rb'form-data; name="(?P<name>[^"\\%;]*)"(?:; filename="[^"\\;]*")?(?:; filename\*=[^"\\;]*)?'
)
_MODEL: Final = b"model"


def unmistakable(content_type: str, body: bytes) -> bool:
    """Whether a form has one model at most, and nobody could take any part of it for another; True for a body
    that is no form.
    """
    if not content_type.strip().lower().startswith("multipart/"):
        return True
    kind = _KIND.fullmatch(content_type)
    if kind is None:
        return False
    line = b"--" + kind[2].encode()
    first, *parts = body.split(b"\r\n" + line)
    if not first.startswith(line) or body.count(line) != len(parts) + 1 or not parts:
        return False
    *parts, end = (first.removeprefix(line), *parts)
    names = [_name_of(part) for part in parts]
    return end in (b"--", b"--\r\n") and None not in names and names.count(_MODEL) <= 1


def _name_of(part: bytes) -> bytes | None:
    """The name of a part, in lower case; None where it has none, or may have several."""
    head, blank, _ = part.partition(b"\r\n\r\n")
    begin, *lines = head.split(b"\r\n")
    fields = [_LINE.fullmatch(each) for each in lines]
    if begin or not blank or not lines:
        return None
    names = [None if each is None else each["name"].lower() for each in fields]
    if None in names or names.count(b"content-disposition") != 1:
        return None
    (told,) = (each["value"] for each in fields if each and each["name"].lower() == b"content-disposition")
    found = _DISPOSITION.fullmatch(told)
    return None if found is None else found["name"].lower()
