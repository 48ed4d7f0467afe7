"""Adapters (LoRA) of a pool's base model: what is wanted, what a node holds, and how much each is used."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from policies.value import value

_REVISION_LENGTH = 8


@lru_cache(maxsize=8192)
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


@value
class AdapterRules:
    """The adapters that a pool serves, and how its nodes hold them.

    `wanted`: in the order of the configuration, each name once. `slots`: how many a node holds at most; None
    for all. `runtime`: an engine loads and unloads them while it runs. `numbered`: it has those that it was
    started with, which are the wanted ones and no others, and knows them by number.
    """

    wanted: tuple[Adapter, ...] = ()
    slots: int | None = None
    runtime: bool = True
    numbered: bool = False

    @property
    def fit(self) -> bool:
        """Every node holds all of them."""
        return self.slots is None or len(self.wanted) <= self.slots

    @property
    def started_with(self) -> str:
        """What tells one set from another that engines are started with; empty where they are with none."""
        sources = sorted(adapter.location for adapter in self.wanted) if self.numbered else ()
        return revision_of("\n".join(sources)) if sources else ""


def beside(slots: int) -> int:
    """How many more than it should a node may hold, while some take the place of others.

    >>> beside(1), beside(32)
    (1, 4)
    """
    return max(1, slots // 8)


def is_ours(served_as: str) -> bool:
    """True for a name that `Adapter.served_as` may have given.

    >>> is_ours("sql@f9c12638"), is_ours("sql"), is_ours("sql@main")
    (True, False, False)
    """
    name, _, revision = served_as.rpartition("@")
    hexadecimal = all(sign in "0123456789abcdef" for sign in revision)
    return bool(name) and len(revision) == _REVISION_LENGTH and hexadecimal


def held_as(served_as: str) -> Held:
    """What a node holds that loaded it under that name.

    >>> held_as("sql@f9c12638").name
    'sql'
    """
    name, _, revision = served_as.rpartition("@")
    return Held(name=name, served_as=served_as, revision=revision)
