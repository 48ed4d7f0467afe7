"""Facts about adapters on nodes. `adapter` is the engine's name of one: `policies.held.Adapter.served_as`."""

from __future__ import annotations

from policies.value import value


@value
class AdapterAsked:
    """An engine is about to be asked to `load` an adapter, or else to unload it. Written before the call."""

    at: float
    node: str
    adapter: str
    load: bool
    reason: str


@value
class AdapterAnswered:
    """Such a call came back. What was loaded was seen to make a token, or the like."""

    at: float
    node: str
    adapter: str
    load: bool
    failure: str = ""  # why it was not done, empty where it was
    certain: bool = True  # a failed call surely did nothing


@value
class NodeOutdated:
    """An engine has other adapters than it would be started with: another node takes its place."""

    at: float
    node: str
    reason: str
    budget: float  # seconds for the requests in flight, once that is ready
    again: bool = False  # it was launched with what is wanted, and lost it


@value
class NodeCurrent:
    """An engine has what it would be started with, after that was changed back: the node stays."""

    at: float
    node: str


@value
class AdapterLost:
    """An engine does not list an adapter that it held: it was started again, or somebody unloaded it."""

    at: float
    node: str
    adapter: str


AdapterEvent = AdapterAsked | AdapterAnswered | AdapterLost | NodeOutdated | NodeCurrent
