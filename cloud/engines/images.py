"""The images that engines are shipped in: what their vendors call them, and what starts the engine in one.

Which image a pool runs is written in its configuration. Read in the vendors' build files and instructions of
2026, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cloud.engines.dialect import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """How an engine is shipped in an image."""

    name: str  # the vendor's, without its registry, with a tag of the form that it uses
    entry: Literal["argv", "program", "own"]  # see `cloud.ports.Container`
    program: str = ""  # what is called in the image; empty: the usual program
    where: str  # what says so


IMAGES: Final[Mapping[Kind, Image]] = MappingProxyType(
    {
        "vllm": Image(
            name="vllm/vllm-openai:v0.18.0",
            entry="program",
            where="docker/Dockerfile: the entry point is `vllm serve`, before 0.11 python3 -m ...api_server",
        ),
        "llamacpp": Image(
            name="ggml-org/llama.cpp:server-cuda",
            entry="own",
            where=".devops/cuda.Dockerfile: the entry point is /app/llama-server, which is not on its PATH",
        ),
        "sglang": Image(
            name="lmsysorg/sglang:v0.5.9",
            entry="argv",
            where="docker/Dockerfile, docs/get_started/install: the command stands after the image",
        ),
        "tgi": Image(
            name="huggingface/text-generation-inference:3.3.6",
            entry="own",
            where="Dockerfile, tgi-entrypoint.sh: the launcher with what stands after the image",
        ),
        "tei": Image(
            name="huggingface/text-embeddings-inference:89-1.9",
            entry="own",
            where="Dockerfile-cuda, cuda-all-entrypoint.sh: the router made for the GPU; tags begin with it",
        ),
        "ollama": Image(
            name="ollama/ollama:0.33.0",
            entry="program",
            where="Dockerfile: the entry point is /bin/ollama; `env` is in the image too",
        ),
        "trtllm": Image(
            name="nvidia/tensorrt-llm/release:1.2.0",
            entry="argv",
            where="docs, quick start: NVIDIA's entry point looks at the driver and runs what stands after",
        ),
        "simulated": Image(
            name="REGISTRY/orchestrator:VERSION",
            entry="program",
            program="python3",
            where="any image with this distribution in its Python",
        ),
    }
)
