"""vLLM behind the `Engine` port: `vllm serve` with the user's flags, and the flags a drain needs.

Measured on vLLM 0.32.
"""

from __future__ import annotations

import math

from cloud.engines.flags import flag_value, seconds, with_defaults
from cloud.engines.openai_probe import OpenAiProbe
from cloud.ports import Clock, EngineCommand, EngineSpec
from policies.model import EngineReading

_TEARDOWN = 20.0  # s from the last token of a drain to the exit: up to 14 s were measured


class VllmEngine:
    """vLLM. `model_name` is the served name that probes ask for; see `OpenAiProbe` for the times."""

    name = "vllm"

    def __init__(
        self,
        clock: Clock,
        *,
        model_name: str,
        api_key: str = "",
        probe_timeout: float = 5.0,
        stall_after: float = 10.0,
        deep_every: float = 30.0,
    ) -> None:
        self._probe = OpenAiProbe(
            clock,
            model_name=model_name,
            api_key=api_key,
            probe_timeout=probe_timeout,
            stall_after=stall_after,
            deep_every=deep_every,
        )

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``vllm serve MODEL`` with our flags where the user gives none, then the user's.

        ``--shutdown-timeout`` is ours: without it a SIGTERM leaves streams hanging in silence. The group is
        killed only after vLLM had that time and the time to take its processes down.
        """
        defaults = (
            ("--served-model-name", spec.served_name),
            ("--host", "{host}"),
            ("--port", "{port}"),
            ("--shutdown-timeout", str(math.ceil(spec.drain_budget))),
        )
        timeout = seconds(flag_value(spec.args, "--shutdown-timeout"), math.ceil(spec.drain_budget))
        return EngineCommand(
            argv=(spec.executable or "vllm", "serve", spec.model, *with_defaults(spec.args, defaults)),
            env=dict(spec.env),
            stop_signal="SIGTERM",
            stop_grace=timeout + _TEARDOWN,
        )

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        """Look at one engine once; see `OpenAiProbe.probe`."""
        return await self._probe.probe(node, address, previous)

    def forget(self, node: str) -> None:
        """Drop what is remembered of a node that is gone."""
        self._probe.forget(node)

    async def close(self) -> None:
        """Release connections."""
        await self._probe.close()
