"""TensorRT-LLM behind the `Engine` port: `trtllm-serve` with the user's flags.

Read in its repository (main, late 2025 and 2026), not run.
"""

from __future__ import annotations

from typing import ClassVar, Final

from cloud.engines.dialect import PROGRAMS, TRTLLM
from cloud.engines.flags import with_defaults
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec

_TEARDOWN: Final = 60.0  # s from the last answer until its workers let the GPUs go


class TrtllmEngine(OpenAiProbe):
    """TensorRT-LLM. See `OpenAiProbe` for the times.

    It answers to any name of a model, and calls itself by its model. Its metrics need
    ``return_perf_metrics: true`` in the file that ``--extra_llm_api_options`` names, and those of what runs
    and waits, which it counts once an iteration, ``enable_iter_perf_stats: true`` as well.
    """

    name = "trtllm"
    dialect: ClassVar[Dialect] = TRTLLM

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``trtllm-serve MODEL`` with our flags where the user gives none, then the user's.

        After the stop signal it answers what it has for as long as that takes, so the budget bounds it.
        """
        defaults = (("--host", "{host}"), ("--port", "{port}"))
        return EngineCommand(
            argv=(spec.executable or PROGRAMS[self.name], spec.model, *with_defaults(spec.args, defaults)),
            env=dict(spec.env),
            stop_signal="SIGTERM",
            stop_grace=spec.drain_budget + _TEARDOWN,
            build=spec.build(self.name),
        )
