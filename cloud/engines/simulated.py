"""The simulated engine behind the `Engine` port: a process that behaves like vLLM and needs no model."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

from cloud.engines.dialect import SIMULATED
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
from cloud.engines.row import Dialect
from cloud.ports import Clock, EngineCommand, EngineSpec, Task

_SERVER = "cloud.engines.simulated_server"
_TEARDOWN = 5.0  # s from the end of a drain to the exit: it has nothing to take down, but machines are slow


class SimulatedEngine(OpenAiProbe):
    """The simulated engine. `load_time` (s), `tokens_per_second` (of one request) and `max_num_seqs` are what
    its servers get unless the spec's own flags say otherwise; see `OpenAiProbe` for the other times.
    """

    name = "simulated"
    dialect: ClassVar[Dialect] = SIMULATED

    def __init__(
        self,
        clock: Clock,
        *,
        model_name: str,
        task: Task = "generate",
        api_key: str = "",
        load_time: float = 2.0,
        tokens_per_second: float = 50.0,
        max_num_seqs: int = 8,
        probe_timeout: float = 5.0,
        stall_after: float = 10.0,
        deep_every: float = 30.0,
    ) -> None:
        super().__init__(
            clock,
            model_name=model_name,
            task=task,
            api_key=api_key,
            probe_timeout=probe_timeout,
            stall_after=stall_after,
            deep_every=deep_every,
        )
        self._load_time = load_time
        self._tokens_per_second = tokens_per_second
        self._max_num_seqs = max_num_seqs

    def command(self, spec: EngineSpec) -> EngineCommand:
        """The server as a module of this interpreter, or of the one that `spec.executable` names."""
        defaults = (
            ("--served-model-name", spec.served_name),
            ("--host", "{host}"),
            ("--port", "{port}"),
            ("--load-time", f"{self._load_time:g}"),
            ("--tokens-per-second", f"{self._tokens_per_second:g}"),
            ("--max-num-seqs", str(self._max_num_seqs)),
            ("--shutdown-timeout", str(math.ceil(spec.drain_budget))),
        )
        args = with_defaults(
            with_switches(spec.args, (*task_switches(spec), *adapter_switches(spec))),
            (*defaults, *task_flags(spec), *adapter_flags(spec)),
        )
        python = spec.executable or sys.executable
        return EngineCommand(
            argv=(python, "-m", _SERVER, "--model", spec.model, *args),
            env={**adapter_variables(spec), **environment(spec)},
            stop_signal="SIGTERM",
            stop_grace=drain_seconds(spec) + _TEARDOWN,
            build=spec.build(self.name),
        )
