"""The configuration's table for the daemon itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.reload import NOW
from orchestrator.config.types import (
    AddressOrOff,
    Duration,
    DurationOrOff,
    FilePath,
    HostNames,
    Section,
    Size,
    StoreAddress,
    address_key,
    duration_key,
    path_key,
    size_key,
)


class DaemonConfig(Section):
    """The daemon itself: where it keeps its state, how it is reached, how often it looks."""

    state_dir: FilePath = path_key(
        "./state", "Directory of the journal, the lease and the sockets. Created if its parent exists."
    )
    socket: FilePath = path_key(
        "{state_dir}/orchestrator.sock", "Unix socket of the control API. Who can open it can do everything."
    )
    readers: Literal["all", "off"] = Field(
        default="all",
        description="Who may read status, events and plans and change nothing: all who can reach the socket "
        "beside `socket` whose name ends in -read, or nobody.",
    )
    listen: AddressOrOff = address_key(
        "127.0.0.1:9477",
        'Address of the read-only listener with /metrics, /v1/sd, /healthz and /readyz, or "off". '
        "It asks for no password, so keep it on the loopback or a private network.",
    )
    allowed_hosts: HostNames = Field(
        default=(),
        description="Names under which `listen` and the listener for node reports are asked for, besides "
        "addresses, localhost and the names of this machine. Others are refused with 421, since a page in a "
        'browser may ask for them (DNS rebinding). ["*"] answers to every name.',
        examples=[["control.internal"]],
    )
    store: StoreAddress = Field(
        default="sqlite",
        description="Where the journal is kept: sqlite is a file in state_dir. Two daemons on two hosts that "
        "name the same PostgreSQL database are a pair: one leads, the other stands by. The password belongs "
        "into a passfile.",
        examples=["postgresql://orchestrator@db.internal/pool?passfile=/etc/orchestrator/pgpass"],
    )
    lease: Duration = duration_key(
        10.0,
        "How long the lease of a pair lasts without being renewed: a standby takes over after this time, "
        "and a leader that cannot reach the database stops acting a fifth before, but for taking noticed "
        "nodes out of the balancers.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="How log lines look: auto means console on a terminal and JSON elsewhere."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], NOW] = Field(
        default="info", description="The least important log lines that are written."
    )
    tick: Annotated[Duration, NOW] = duration_key(
        1.0, "Longest pause between two turns of the loop. Events end it at once."
    )
    poll_instances: Duration = duration_key(5.0, "How often the cloud is asked for the list of machines.")
    poll_offerings: Duration = duration_key(60.0, "How often the cloud is asked for prices and availability.")
    poll_targets: Duration = duration_key(
        2.0,
        "How often the load balancer is asked for its targets. What it holds is unknown once it has not "
        "answered for three times as long, and for 6 s at least.",
    )
    probe_interval: Duration = duration_key(2.0, "How often each engine is probed.")
    probe_timeout: Duration = duration_key(5.0, "How long one probe may take before it counts as failed.")
    probe_concurrency: int = Field(
        default=64, ge=1, le=4096, description="Probes that may run at the same time."
    )
    call_timeout: Duration = duration_key(10.0, "How long one call to a cloud or load balancer may take.")
    record_turns: DurationOrOff = duration_key(
        60.0,
        "What turns of the loop saw and decided is kept in the journal for `orchestrator journal replay`: "
        'always when they do something new, else this often. "0s" keeps every turn, "off" none.',
    )
    keep_events: Annotated[Duration, NOW] = duration_key(
        30 * 86_400.0,
        "How long what happened is kept in the journal, for `orchestrator events`. What recorded turns and "
        "the daemon's memory need stays longer.",
    )
    keep_turns: Annotated[Duration, NOW] = duration_key(7 * 86_400.0, "How long recorded turns are kept.")
    keep_turns_size: Annotated[Size, NOW] = size_key(
        256 * 2**20, "How much of the journal recorded turns may take; the oldest go first."
    )
