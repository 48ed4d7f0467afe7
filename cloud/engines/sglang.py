"""SGLang behind the `Engine` port: `sglang serve` with the user's flags, and those that a probe needs.

Read in SGLang 0.5.23 (October 2026), not run.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

from cloud.engines.dialect import PROGRAMS, SGLANG
from cloud.engines.flags import with_defaults, with_switches
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec

_TEARDOWN: Final = 30.0  # s: it looks every 5 s whether it should end, and waits for its schedulers
_KEEP_ALIVE: Final = "SGLANG_TIMEOUT_KEEP_ALIVE"  # s for which its server keeps idle connections; 5 by itself
_HEALTH_GENERATES: Final = "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"


class SglangEngine(OpenAiProbe):
    """SGLang. See `OpenAiProbe` for the times.

    An adapter is asked for as ``MODEL:ADAPTER``; a name without a colon that it does not know is answered by
    the model itself.
    """

    name = "sglang"
    dialect: ClassVar[Dialect] = SGLANG

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``sglang serve --model-path MODEL`` with our flags where the user gives none, then the user's.

        ``--enable-metrics`` is ours: without it nobody could see what the server holds. Its health check
        would make a token each time, which takes a second: proofs of life are asked for by the probe.
        After the stop signal it answers what it has for as long as that takes, so the budget bounds it.
        """
        defaults = (
            ("--served-model-name", spec.served_name),
            ("--host", "{host}"),
            ("--port", "{port}"),
        )
        switches = (
            ("--enable-metrics",) if spec.task == "generate" else ("--enable-metrics", "--is-embedding")
        )
        return EngineCommand(
            argv=(
                *(spec.executable or PROGRAMS[self.name], "serve", "--model-path", spec.model),
                *with_defaults(with_switches(spec.args, switches), defaults),
            ),
            env={_HEALTH_GENERATES: "0", _KEEP_ALIVE: str(math.ceil(spec.keep_alive)), **spec.env},
            stop_signal="SIGTERM",
            stop_grace=spec.drain_budget + _TEARDOWN,
            build=spec.build(self.name),
        )
