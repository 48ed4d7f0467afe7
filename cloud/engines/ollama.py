"""Ollama behind the `Engine` port: `ollama serve` on the node's address.

Read in its repository (0.33.0-rc2 of August 2026), not run.
"""

from __future__ import annotations

from typing import ClassVar, Final

from cloud.engines.dialect import OLLAMA, PROGRAMS
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec

_TEARDOWN: Final = 10.0  # s from the stop signal to the exit: it cuts all connections, and ends its runners


class OllamaEngine(OpenAiProbe):
    """Ollama. See `OpenAiProbe` for the times.

    The model must be on the node already, in the folder that OLLAMA_MODELS names: nothing is pulled. It is
    loaded by the first request, so by the first look that asks for a token. There are no metrics: what it
    holds is not known, and a look that asks for a token waits in its queue.
    """

    name = "ollama"
    dialect: ClassVar[Dialect] = OLLAMA

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``ollama serve``, which takes no flags: where it listens is a variable, and `env` fills it in.

        OLLAMA_KEEP_ALIVE is ours: by itself it unloads a model that nobody asked for in five minutes. The
        stop signal gets moments only, whatever the drain budget: the server does not drain.
        """
        listens = ("env", "OLLAMA_HOST={host}:{port}")
        return EngineCommand(
            argv=(*listens, spec.executable or PROGRAMS[self.name], "serve", *spec.args),
            env={"OLLAMA_KEEP_ALIVE": "-1", **spec.env},
            stop_signal="SIGTERM",
            stop_grace=_TEARDOWN,
            build=spec.build(self.name),
        )
