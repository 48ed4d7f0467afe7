"""vLLM behind the `Engine` port: `vllm serve` with the user's flags, and the flags a drain needs.

Measured on vLLM 0.32.
"""

from __future__ import annotations

import math

from cloud.engines.flags import (
    adapter_flags,
    adapter_switches,
    adapter_variables,
    drain_seconds,
    task_flags,
    task_switches,
    with_defaults,
    with_switches,
)
from cloud.engines.keep_alive import environment
from cloud.engines.openai_probe import OpenAiProbe
from cloud.ports import EngineCommand, EngineSpec

_TEARDOWN = 20.0  # s from the last token of a drain to the exit: up to 14 s were measured

_COUNTS = ("--enable-prompt-tokens-details",)


class VllmEngine(OpenAiProbe):
    """vLLM. `model_name` is the served name that probes ask for; see `OpenAiProbe` for the times."""

    name = "vllm"

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``vllm serve MODEL`` with our flags where the user gives none, then the user's.

        ``--shutdown-timeout`` is ours: without it a SIGTERM leaves streams hanging in silence. The group is
        killed only after vLLM had that time and the time to take its processes down. ``--enable-scale-out``
        is ours too: with it a gateway can continue a stream elsewhere from its token ids; and
        ``--enable-prompt-tokens-details``, with which answers tell how much of a prompt came from the cache.
        So is how long idle connections are kept: longer than a balancer does. A model that embeds runs as
        ``--runner pooling``. Where the pool has adapters, ``--enable-lora`` and what goes with it are ours.
        """
        defaults = (
            ("--served-model-name", spec.served_name),
            ("--host", "{host}"),
            ("--port", "{port}"),
            ("--shutdown-timeout", str(math.ceil(spec.drain_budget))),
        )
        switches = (
            *task_switches(spec),
            *adapter_switches(spec),
            *(_COUNTS if spec.task == "generate" else ()),
        )
        args = with_defaults(
            with_switches(spec.args, switches), (*defaults, *task_flags(spec), *adapter_flags(spec))
        )
        return EngineCommand(
            argv=(spec.executable or "vllm", "serve", spec.model, *args),
            env={**adapter_variables(spec), **environment(spec)},
            stop_signal="SIGTERM",
            stop_grace=drain_seconds(spec) + _TEARDOWN,
            build=spec.build(self.name),
        )
