"""Tags that the user wants on what a pool has on AWS, and what AWS takes of them. Pure.

Source of the limits: the EC2 user guide ("Tag your Amazon EC2 resources", restrictions), with the characters
that every service takes: queues, rules and target groups get the tags too, not only EC2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from cloud.aws.places import ENGINE_TAG, GENERATION_TAG, POOL_TAG, STANDBY_TAG, TOKEN_TAG

OWN: Final = frozenset({"Name", POOL_TAG, TOKEN_TAG, STANDBY_TAG, ENGINE_TAG, GENERATION_TAG})
"""Keys that what the pool has carries anyway. A user's tag never stands in for one of them."""

MOST: Final = 50 - len(OWN)
"""The most tags of the user's: a resource takes 50."""

_KEY_LENGTH: Final = 128
_VALUE_LENGTH: Final = 256
_TAKEN: Final = re.compile(r"[\w +\-=.:/@]*")


def faults(tags: Mapping[str, str]) -> dict[str, str]:
    """What AWS or the pool would not take: a sentence for each such key, and one for "" about them all."""
    found = {key: why for key, value in tags.items() if (why := _fault(key, value))}
    if len(tags) > MOST:
        found[""] = (
            f"are {len(tags)}; AWS takes 50 on a resource, and {len(OWN)} are the pool's: {MOST} or fewer"
        )
    return found


def _fault(key: str, value: str) -> str:
    if not key or key != key.strip():
        return "is empty, or starts or ends with a space; write a name such as team"
    if key.lower().startswith("aws:"):
        return "starts with aws:, which only AWS may write; choose another name"
    if key in OWN or key.lower().startswith("orchestrator:"):
        return "is one of the pool's own tags, by which it finds what is its; choose another name"
    if len(key) > _KEY_LENGTH:
        return f"has {len(key)} characters, and AWS takes {_KEY_LENGTH}; shorten it"
    if len(value) > _VALUE_LENGTH:
        return f"has a value of {len(value)} characters, and AWS takes {_VALUE_LENGTH}; shorten it"
    if not _TAKEN.fullmatch(key) or not _TAKEN.fullmatch(value):
        return "may hold letters, digits, spaces and any of + - = . _ : / @, in its name and in its value"
    return ""


def by_key(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags as EC2, EventBridge and ELBv2 list them, as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags}


def listed(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as EC2, EventBridge and ELBv2 take them, in the same order for equal tags."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
