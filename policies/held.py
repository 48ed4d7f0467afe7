"""Adapters (LoRA) of a pool's base model: what is wanted, what a node holds, and how much each is used."""

from __future__ import annotations

from hashlib import sha256

from policies.value import value

_REVISION_LENGTH = 8


def revision_of(source: str) -> str:
    """What tells one source of an adapter from another: 8 hexadecimal digits.

    >>> revision_of("/srv/lora/sql@3f2a")
    'f9c12638'
    """
    return sha256(source.encode()).hexdigest()[:_REVISION_LENGTH]


@value
class Adapter:
    """An adapter that a pool is to serve: clients ask for `name`.

    `source` is a folder or file on the node, or a repository, with ``@revision`` at its end where it has one:
    "/srv/lora/sql@3f2a", "acme/sql-lora@main". Another source is another revision.
    """

    name: str
    source: str

    @property
    def revision(self) -> str:
        """See `revision_of`."""
        return revision_of(self.source)

    @property
    def served_as(self) -> str:
        """The name by which an engine that loads it at run time knows it: a new revision has another."""
        return f"{self.name}@{self.revision}"

    @property
    def location(self) -> str:
        """The source without its revision.

        >>> Adapter(name="sql", source="/srv/lora/sql@3f2a").location
        '/srv/lora/sql'
        """
        place, at, revision = self.source.rpartition("@")
        return place if at and place and "/" not in revision else self.source


@value
class Held:
    """An adapter that a node holds and that was seen to work there.

    `name`: what clients ask for. `served_as`: the engine's own name of it, empty where the engine knows it by
    `number` (llama.cpp: the place of its `--lora`), with the base model's name. Of two revisions of one name,
    `revision` tells which.
    """

    name: str
    served_as: str = ""
    number: int | None = None
    revision: str = ""


@value
class AdapterCount:
    """What one gateway counted for an adapter since it started: requests that asked for it, and tokens.

    `cold`: a request waits, since no target holds it.
    """

    asked: int = 0
    tokens: int = 0
    cold: bool = False


@value
class AdapterUse:
    """How much an adapter is used: requests and tokens a minute lately, in all gateways.

    `waiting`: a request waits for it, since no target holds it.
    """

    asked: float = 0.0
    tokens: float = 0.0
    waiting: bool = False
