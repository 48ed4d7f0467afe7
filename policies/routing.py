"""Where a request goes: the backends of its route in order, and what each has to be in trouble with first.

What it decides: which backend of a route gets a request next, how long the request may wait there, and why
the others were left out; which route stands for the name of a model, and which name was probably meant.

Why: a route names its backends in order of preference. Each after the first says which troubles of those
before it make it step in: they are down, saturated, kept the request waiting for too long, or (always) failed
it in any way. A backend is used when every usable one before it is in such a trouble, so a paid API that
stands in for what is down gets nothing because a pool is merely busy. Where nobody is free of trouble, one
that is busy is better than one that is down. Backends with weights share the requests first.

Never: a provider in a route whose data stays; another model for embeddings and rankings, whose numbers
would not compare.

Example:
    >>> chat = Backend(kind=Kind.POOL, name="chat")
    >>> api = Backend(kind=Kind.PROVIDER, name="api", model="big")
    >>> route = Route(models=("assistant",), backends=(chat, api))
    >>> well, down = BackendView(), BackendView(hopeful=False)
    >>> choose(route, (well, well)).candidate.backend.name
    'chat'
    >>> choice = choose(route, (down, well))
    >>> choice.candidate.backend.name, [str(each) for each in choice.left_out]
    ('api', ['pool chat is down'])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

_LONGEST_NAME = 200
"""Characters of an unknown name that are compared with those that are known."""

_LIKENESS = 0.5
"""How alike a name has to be to be called the nearest, of 1."""


class Kind(StrEnum):
    """What a backend is."""

    POOL = "pool"
    PROVIDER = "provider"


class When(StrEnum):
    """Which trouble of those before it makes a backend step in."""

    ALWAYS = "always"  # any, failures of the requests themselves included
    DOWN = "down"  # nothing can be hoped for
    SATURATED = "saturated"  # all of it is busy


class Trouble(StrEnum):
    """Why a backend did not answer a request, of which the client has nothing."""

    SATURATED = "saturated"
    WAITED = "waited"  # it kept the request waiting for as long as the request may
    DOWN = "down"
    FAILED = "failed"  # it answered, and with an error that may be the request's own fault


class Task(StrEnum):
    """What the models of a route do."""

    CHAT = "chat"
    EMBED = "embed"
    RERANK = "rerank"


ANY_TASK: Final = frozenset(Task)


def main_task(tasks: Set[Task]) -> Task:
    """What a model that does all of these is for, as routes say it."""
    return next(task for task in Task if task in tasks)


class Affinity(StrEnum):
    """Which requests of a route go to the same target of a pool, as long as that is not busier than most."""

    NONE = "none"
    SESSION = "session"  # those with the same session header
    PREFIX = "prefix"  # those that begin alike


_WHEN_UNSAID: Mapping[Kind, frozenset[When]] = {
    Kind.POOL: frozenset({When.DOWN, When.SATURATED}),
    Kind.PROVIDER: frozenset({When.DOWN}),
}


_MEETS: Mapping[When, tuple[Trouble, ...]] = {
    When.ALWAYS: tuple(Trouble),
    When.DOWN: (Trouble.DOWN,),
    When.SATURATED: (Trouble.SATURATED,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One entry of a route: a pool, a pool's adapter, or a provider's model."""

    kind: Kind
    name: str
    model: str = ""  # its name there; empty for a pool's own
    when: frozenset[When] | None = None  # None: as its kind does (`_WHEN_UNSAID`)
    waited: float | None = None  # seconds in the queue before it after which it steps in too
    weight: int | None = None  # share of the requests; None: no share
    _met: tuple[Trouble, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        when = self.conditions
        met = [trouble for condition in when for trouble in _MEETS[condition]]
        if self.waited is not None:
            met.append(Trouble.WAITED)
        object.__setattr__(self, "_met", tuple(met))  # looked up for every request

    @property
    def conditions(self) -> frozenset[When]:
        """Which troubles make it step in, also where nothing is written."""
        return _WHEN_UNSAID[self.kind] if self.when is None else self.when

    def steps_in(self, trouble: Trouble) -> bool:
        """Whether it is there for a request that met this trouble."""
        return trouble in self._met

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.kind} {self.name}" + (f" ({self.model})" if self.model else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Names that clients ask for, the first of which is listed, and the backends that answer, in order.

    Raises ValueError for one that could not be served as it says.
    """

    models: tuple[str, ...]
    backends: tuple[Backend, ...]
    stays: bool = False  # nothing of it may reach a provider
    task: Task = Task.CHAT
    priority: int = 0  # higher goes first in a queue
    most_tokens: int = 0  # longest answer that may be asked for; 0: any
    affinity: Affinity = Affinity.NONE
    session_header: str = "x-session-id"  # for affinity by session
    usd_per_day_pico: int | None = None  # picodollars (1e-12 USD) a day at providers; None: no cap of its own

    def __post_init__(self) -> None:
        if not self.models or not all(self.models):
            raise ValueError("a route needs a name that clients can ask for")
        if not self.backends:
            raise ValueError(f"route {self.name!r} has no backend")
        if self.stays and _providers(self.backends):
            raise ValueError(f"the data of route {self.name!r} stays, so no provider can be in it")
        if any(backend.weight is not None and backend.weight < 0 for backend in self.backends):
            raise ValueError(f"route {self.name!r}: a weight is zero or more")
        if self.task is not Task.CHAT and len({backend.model for backend in self.backends}) > 1:
            raise ValueError(
                f"route {self.name!r} is for {self.task}, so all of its backends must serve the same model: "
                "what different models answer cannot be compared"
            )

    @property
    def name(self) -> str:
        """The name under which it is listed."""
        return self.models[0]

    @property
    def stand_ins(self) -> frozenset[str]:
        """The providers that get requests only when those before them are in trouble."""
        split = [backend for backend in self.backends if backend.weight]
        first = split if len(split) >= _SPLIT else self.backends[:1]
        return _providers(self.backends) - _providers(first)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendView:
    """How a backend is at this moment.

    `hopeful`: it makes sense to send it something; `sound`: it is known to answer; `saturated`: it has no
    place free; `why`: what is wrong, in words that follow its name, as "is down".
    """

    hopeful: bool = True
    sound: bool = True
    saturated: bool = False
    why: str = ""

    @property
    def trouble(self) -> Trouble | None:
        """What keeps a request from being answered there at once."""
        if not self.hopeful:
            return Trouble.DOWN
        return Trouble.SATURATED if self.saturated else None

    @property
    def words(self) -> str:
        """Its trouble in words."""
        return self.why or {None: "is well", Trouble.DOWN: "is down"}.get(self.trouble, "is busy")


@dataclass(frozen=True, slots=True)
class Candidate:
    """The backend to try next, at `place` in its route.

    `patience`: seconds that the request may wait there, None for as long as the backend lets it. `leaves`:
    on these troubles it goes on at once, as another backend would step in.
    """

    backend: Backend
    place: int
    patience: float | None = None
    leaves: frozenset[Trouble] = frozenset()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A backend that is not tried, and why in words that follow its name."""

    backend: Backend
    why: str

    def __str__(self) -> str:
        return f"{self.backend} {self.why}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is tried next, None where nothing is left, and what was left out before it."""

    candidate: Candidate | None
    left_out: tuple[LeftOut, ...] = ()


def choose(
    route: Route,
    views: Sequence[BackendView],
    troubles: Mapping[int, Trouble] = MappingProxyType({}),
    draw: float = 0.0,
) -> Choice:
    """The backend that gets the request now.

    `views` are in the order of the route, `troubles` what the request met at those that it tried, by place,
    and `draw` its number in [0, 1), which the weights share out.
    """
    order = _order(route, views, draw)
    before: list[Trouble] = []  # of those that would have had the request
    found: list[tuple[int, tuple[Trouble, ...]]] = []  # who may have it, with what those before are in
    left_out: list[LeftOut] = []
    for place in order:
        backend, trouble = route.backends[place], troubles.get(place, views[place].trouble)
        if not all(map(backend.steps_in, before)):
            left_out.append(LeftOut(backend, "does not step in for that"))
            continue
        tried = place in troubles
        if not tried:
            found.append((place, tuple(before)))
        if trouble is None:
            break
        left_out.append(LeftOut(backend, _TRIED[trouble] if tried else views[place].words))
        before.append(trouble)
    if not found:
        return Choice(None, tuple(left_out))
    place, met = min(found, key=lambda each: _SEVERITY[views[each[0]].trouble])
    others = [each for each in order[order.index(place) + 1 :] if each not in troubles]
    candidate = _candidate(route, place, met, others, views)
    return Choice(candidate, tuple(each for each in left_out if each.backend is not candidate.backend))


def _candidate(
    route: Route, place: int, met: Iterable[Trouble], others: Iterable[int], views: Sequence[BackendView]
) -> Candidate:
    """The backend at `place`, with what makes the request go on to one of the `others`."""
    waits: list[float] = []
    leaves: set[Trouble] = set()
    for other in others:
        backend, trouble = route.backends[other], views[other].trouble
        if trouble is Trouble.DOWN or not all(map(backend.steps_in, met)):
            continue
        if backend.waited is not None:
            waits.append(backend.waited)
        if backend.steps_in(Trouble.DOWN):
            leaves.add(Trouble.DOWN)
        if trouble is None and backend.steps_in(Trouble.SATURATED):
            leaves.add(Trouble.SATURATED)
    return Candidate(route.backends[place], place, min(waits, default=None), frozenset(leaves))


def _order(route: Route, views: Sequence[BackendView], draw: float) -> list[int]:
    """Places in the order of one request: a split gives each of its backends the first place in turn.

    Only those in the least trouble take part in it.
    """
    places = list(range(len(route.backends)))
    shares = {at: weight for at in places if (weight := route.backends[at].weight) is not None}
    if len(shares) < _SPLIT:
        return places
    least = min(_SEVERITY[views[at].trouble] for at, weight in shares.items())
    able = {at: weight for at, weight in shares.items() if _SEVERITY[views[at].trouble] == least}
    mark = draw * sum(able.values())
    first = next(iter(shares))
    for at, weight in able.items():
        if weight and mark < weight:
            first = at
            break
        mark -= weight
    return [first, *(at for at in shares if at != first), *(at for at in places if at not in shares)]


def _providers(backends: Iterable[Backend]) -> frozenset[str]:
    """The names of those that are providers."""
    return frozenset(backend.name for backend in backends if backend.kind is Kind.PROVIDER)


_SPLIT = 2  # entries with a weight make a split
_SEVERITY = {None: 0, Trouble.SATURATED: 1, Trouble.DOWN: 2}
_TRIED = {
    Trouble.DOWN: "could not be reached",
    Trouble.SATURATED: "had no place",
    Trouble.WAITED: "kept it waiting",
    Trouble.FAILED: "answered with an error",
}


class Names:
    """The routes by the names that clients ask for.

    Those that are written come before those of the pools' own models, which every pool has.
    """

    def __init__(self, written: Iterable[Route], implicit: Iterable[Route] = ()) -> None:
        self.by_name: dict[str, Route] = {}
        self.listed: list[Route] = []
        for route in (*written, *implicit):
            names = [name for name in route.models if name not in self.by_name]
            self.by_name.update(dict.fromkeys(names, route))
            if names:
                self.listed.append(route)

    def find(self, model: str) -> Route | None:
        """The route of a name."""
        return self.by_name.get(model)

    def nearest(self, model: str) -> str:
        """The known name that was probably meant, empty where none is like it.

        >>> names = Names([Route(models=("gpt-4o",), backends=(Backend(kind=Kind.POOL, name="a"),))])
        >>> names.nearest("GPT4o"), names.nearest("mistral")
        ('gpt-4o', '')
        """
        folded = {name.casefold(): name for name in self.by_name}
        asked = model[:_LONGEST_NAME].casefold()
        return next((folded[one] for one in difflib.get_close_matches(asked, folded, 1, _LIKENESS)), "")
