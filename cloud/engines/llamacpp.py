"""llama.cpp behind the `Engine` port: `llama-server` with the user's flags, and those that a probe needs.

Measured on the server of xllamacpp 2026.10 (llama.cpp of October 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from cloud.engines.dialect import LLAMACPP, PROGRAMS
from cloud.engines.flags import with_defaults, with_switches
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.ports import EngineCommand, EngineSpec, Task

_SWITCHES: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {"generate": (), "embed": ("--embedding", "--kv-unified"), "rerank": ("--reranking",)}
)
_TEARDOWN = 5.0  # s from the stop signal to the end of an idle server: it takes less than one


class LlamaCppEngine(OpenAiProbe):
    """llama.cpp. `model_name` is the served name that probes ask for; see `OpenAiProbe` for the times."""

    name = "llamacpp"
    dialect: ClassVar[Dialect] = LLAMACPP

    def command(self, spec: EngineSpec) -> EngineCommand:
        """``llama-server --model FILE`` with our flags where the user gives none, then the user's.

        A model that is no GGUF file is one of a hub, ``USER/NAME`` or ``USER/NAME:QUANTISATION``.
        ``--metrics`` is ours: without it nobody could see what the server holds. The stop signal gets moments
        only, whatever the drain budget: the server does not drain, and what it still answers then is lost.
        ``--lora`` is ours for each adapter of the pool: requests name them by their place. ``--kv-unified``
        is ours where it embeds: with a cache for each slot, texts that run at once are read in steps of the
        shortest, and the mean of a decoder's numbers is that of each text's last step alone.
        """
        defaults = (("--alias", spec.served_name), ("--host", "{host}"), ("--port", "{port}"))
        switches = ("--metrics", *_SWITCHES[spec.task])
        files = tuple(word for file in spec.adapters for word in ("--lora", file))
        source = "--model" if spec.model.endswith(".gguf") else "--hf-repo"
        return EngineCommand(
            argv=(
                *(spec.executable or PROGRAMS[self.name], source, spec.model),
                *with_defaults(with_switches(spec.args, switches), defaults),
                *files,
            ),
            env=dict(spec.env),
            stop_signal="SIGTERM",
            stop_grace=_TEARDOWN,
            build=spec.build(self.name),
        )
