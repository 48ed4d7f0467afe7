"""Text Embeddings Inference behind the `Engine` port: its router with the user's flags.

Read in its repository (1.9.3 of July 2026), not run.
"""

from __future__ import annotations

from typing import ClassVar, Final

from cloud.engines.dialect import PROGRAMS, TEI
from cloud.engines.flags import with_defaults
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec

_TEARDOWN: Final = 10.0  # s from the last answer to the exit


class TeiEngine(OpenAiProbe):
    """Text Embeddings Inference: it embeds or reranks, as its model does, and generates nothing.

    See `OpenAiProbe` for the times. It answers to any name of a model. It has no gauge of the requests that
    it works on, only of those that wait.
    """

    name = "tei"
    dialect: ClassVar[Dialect] = TEI

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``text-embeddings-router --model-id MODEL`` with our flags where the user gives none.

        After the stop signal it answers what it has for as long as that takes, so the budget bounds it.
        """
        defaults = (
            ("--served-model-name", spec.served_name),
            ("--hostname", "{host}"),
            ("--port", "{port}"),
        )
        return EngineCommand(
            argv=(
                *(spec.executable or PROGRAMS[self.name], "--model-id", spec.model),
                *with_defaults(spec.args, defaults),
            ),
            env=dict(spec.env),
            stop_signal="SIGTERM",
            stop_grace=spec.drain_budget + _TEARDOWN,
            build=spec.build(self.name),
        )
