"""How far this host comes at a node's engine: the port, its health, its model, a token."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from cloud.engines import openai_probe
from cloud.engines.wire import LookFailed
from orchestrator.doctor.findings import Finding, fail, ok, warn
from orchestrator.words import age
from policies.model import Instance

PATIENCE: Final = 3.0
"""Seconds for a connection."""


class Step(StrEnum):
    """What an engine that answers has come to, in this order."""

    PORT = "port open"
    HEALTHY = "healthy"
    MODEL = "model listed"
    SPEAKS = "first token"


class Why(StrEnum):
    """Why a step was not reached, where that tells where to look."""

    REFUSED = "refused"  # the machine answers, and nothing listens there
    SILENT = "silent"  # nobody answers at all
    ANSWER = "answer"  # the engine says something else than it should


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A step that was not reached. `text` is a sentence for people."""

    step: Step
    why: Why
    text: str


class Engine(Protocol):
    """The part of an engine's adapter that asks for one step."""

    async def came_to(self, step: openai_probe.Step, address: str) -> None:
        """Raises LookFailed."""
        ...


async def reached(engine: Engine, step: Step, address: str, patience: float = PATIENCE) -> Trouble | None:
    """Try one step; None when the engine has come to it. `patience`: seconds for a connection."""
    if step is Step.PORT:
        return await _connected(address, patience)
    try:
        await engine.came_to(openai_probe.Step(step.value), address)
    except LookFailed as error:
        return Trouble(step=step, why=Why.ANSWER, text=str(error))
    return None


async def first_trouble(engine: Engine, address: str, steps: Sequence[Step] = tuple(Step)) -> Trouble | None:
    """The first of the steps that the engine has not come to."""
    for step in steps:
        trouble = await reached(engine, step, address)
        if trouble is not None:
            return trouble
    return None


def node(machine: Instance, trouble: Trouble | None, *, now: float, boot_timeout: float) -> Finding:
    """A running node, judged by how far this host comes at its engine."""
    name = f"{machine.id} at {machine.address}"
    if trouble is None:
        return ok(f"{name} is reached from here, healthy, and lists its model")
    lived = now - machine.launched_at
    if trouble.why is not Why.SILENT and lived < boot_timeout:
        text = f"{name} is not ready yet, {age(lived)} after its launch: {trouble.text}"
        return warn(text, "run it again when it had time to load its model")
    return fail(f"{name}: {trouble.text}", advice(trouble, machine))


def advice(trouble: Trouble, machine: Instance) -> str:
    """What to do about a step that a node does not reach."""
    if trouble.why is Why.SILENT:
        port = machine.address.rpartition(":")[2]
        return (
            "a security group or a route drops what this host sends: run the daemon in the nodes' network, "
            f"and aws ec2 authorize-security-group-ingress --region {machine.placement.region} --group-id "
            f"NODES --protocol tcp --port {port} --source-group THIS_HOST"
        )
    look = f"`orchestrator node {machine.id}` and the machine's console say how far its start came"
    if trouble.why is Why.REFUSED:
        return f"the machine is reached and its engine does not run: {look}"
    if trouble.step is Step.MODEL:
        return "correct engine.served_name, or the flags in the launch template's user-data"
    return look


async def _connected(address: str, patience: float) -> Trouble | None:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(host, int(port))
    except TimeoutError:
        return Trouble(step=Step.PORT, why=Why.SILENT, text=f"no answer at {address} within {patience:g} s")
    except OSError as error:
        refused = error.errno == errno.ECONNREFUSED
        why = Why.REFUSED if refused else Why.SILENT
        text = "connection refused" if refused else f"cannot connect: {error.strerror or error}"
        return Trouble(step=Step.PORT, why=why, text=f"{text} at {address}")
    writer.close()
    return None
