"""What goes over the local cloud's socket beside the words of the model: values and their JSON readers."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from cloud.ports import LaunchRequest
from policies.model import Instance, NoticeKind, Offering
from policies.starts import NodeStart


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedEvent:
    """One entry of the event feed. `deadline`: None for kinds without one; `at`: when it was published."""

    seq: int
    kind: NoticeKind
    node: str
    deadline: float | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticePage:
    """The answer of a long poll. Sequence numbers belong to the cloud of that id."""

    cloud: str
    events: tuple[FeedEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudDescription:
    """What a client may want to know of a cloud before anything else. `zones` maps a zone to its region."""

    cloud: str
    engine_port: int
    metadata_port: int
    speed: float
    zones: dict[str, str]


LAUNCH = TypeAdapter(LaunchRequest)
INSTANCE = TypeAdapter(Instance)
INSTANCES = TypeAdapter(tuple[Instance, ...])
CONSOLE = TypeAdapter(str)
STARTED: TypeAdapter[NodeStart | None] = TypeAdapter(NodeStart | None)
OFFERINGS = TypeAdapter(tuple[Offering, ...])
EVENT = TypeAdapter(FeedEvent)
PAGE = TypeAdapter(NoticePage)
DESCRIPTION = TypeAdapter(CloudDescription)
