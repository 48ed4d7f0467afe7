"""The [[route]] tables: names that clients ask for, and the backends that answer, in order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.types import (
    UNLIMITED,
    DollarsOrUnlimited,
    Duration,
    Listed,
    Section,
    Strings,
)


class BackendConfig(Section):
    """One place to which a route sends requests: a pool, an adapter of a pool, a provider's model. The first
    one gets every request; those after it are tried in order, each when its conditions hold."""

    pool: str = Field(default="", description="Name of a pool.", examples=["chat"])
    provider: str = Field(default="", description="Name of a provider.", examples=["claude"])
    model: str = Field(
        default="",
        description="The provider's name of the model, or an adapter of the pool. Default for a pool: "
        "the model that it serves.",
        examples=["claude-sonnet-5"],
    )
    when: Listed[Literal["always", "down", "saturated"]] = Field(
        default=(),
        description="When a backend after the first is asked. down: none before it is sound. saturated: "
        "those before it have no room. always: also after any failure before the first byte. Default: "
        '["down"] for a provider, ["down", "saturated"] for a pool.',
        examples=[["down", "saturated"]],
    )
    waited: Duration | None = Field(
        default=None,
        description="It is also asked once a request has waited for so long.",
        examples=["2s"],
    )
    weight: int | None = Field(
        default=None,
        ge=1,
        description="Share of the requests, relative to the other weights of the route: entries with one "
        "split them, those after them are fallbacks.",
        examples=[90],
    )


class RouteConfig(Section):
    """Names that clients ask for, and where their requests go."""

    models: Strings = Field(
        description="Names that clients ask for. The first is shown in lists, the others are aliases.",
        examples=[["assistant", "gpt-4o"]],
    )
    to: Listed[BackendConfig] = Field(
        description='The backends in order: [{ pool = "NAME" }, { provider = "NAME", model = "MODEL" }].',
        examples=[[{"pool": "chat"}, {"provider": "claude", "model": "claude-sonnet-5"}]],
    )
    data: Literal["may-leave", "stays"] = Field(
        default="may-leave",
        description="stays: no request of this route may reach a provider, and the file may not name one.",
    )
    task: Literal["chat", "embed", "rerank"] = Field(
        default="chat",
        description="What is asked for, as engine.task of its pools: chat is their generate. embed, rerank: "
        "vectors and scores of two models cannot be compared, so every backend must serve the same model, by "
        "its name: engine.served_name of a pool, model of a provider.",
    )
    usd_per_day: DollarsOrUnlimited = Field(
        default=None,
        description="Most US dollars that the route may cost at providers in a day (UTC), or unlimited.",
        examples=["20"],
        json_schema_extra={"default": UNLIMITED},
    )
    priority: int = Field(
        default=0, ge=-100, le=100, description="Whose requests leave the queue of a pool first: the higher."
    )
    most_tokens: int = Field(
        default=0,
        ge=0,
        description="Longest answer that may be asked for, in tokens; 0: any.",
    )
    affinity: Literal["none", "session", "prefix"] = Field(
        default="none",
        description="What is kept on one node while that has room, for its prefix cache. session: requests "
        "with the same `session_header`. prefix: those that begin with the same text.",
    )
    session_header: str = Field(
        default="x-session-id",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="Header that names a session, for affinity = session.",
    )

    @property
    def name(self) -> str:
        """The name in lists."""
        return self.models[0]
