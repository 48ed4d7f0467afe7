"""Text Generation Inference behind the `Engine` port: its launcher with the user's flags.

Read in its repository (3.3.6-dev0 of January 2026; it is in maintenance), not run.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

from cloud.engines.dialect import PROGRAMS, TGI
from cloud.engines.flags import flag_value, seconds, with_defaults
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec

_GRACE: Final = "--graceful-termination-timeout"
_TEARDOWN: Final = 20.0  # s from the end of the router to the end of the shards


class TgiEngine(OpenAiProbe):
    """Text Generation Inference. See `OpenAiProbe` for the times.

    It takes the name of a model that it does not know for that of an adapter, and one that it does not have
    for none: such a request is answered by the model itself. It calls itself by its model.
    """

    name = "tgi"
    dialect: ClassVar[Dialect] = TGI

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``text-generation-launcher --model-id MODEL`` with our flags where the user gives none.

        The launcher gives its router as long as ``--graceful-termination-timeout`` says to answer what it
        has, and kills it then: by itself 90 s, from us the drain budget.
        """
        budget = str(math.ceil(spec.drain_budget))
        defaults = (("--hostname", "{host}"), ("--port", "{port}"), (_GRACE, budget))
        return EngineCommand(
            argv=(
                *(spec.executable or PROGRAMS[self.name], "--model-id", spec.model),
                *with_defaults(spec.args, defaults),
            ),
            env=dict(spec.env),
            stop_signal="SIGTERM",
            stop_grace=seconds(flag_value(spec.args, _GRACE), float(budget)) + _TEARDOWN,
            build=spec.build(self.name),
        )
