"""The [pool.NAME.engine] table: the inference server that every node of a pool runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cloud.engines.dialect import Kind
from cloud.ports import Task
from orchestrator.config.reload import SHARED
from orchestrator.config.types import FilePath, Section, Strings, Texts


class OnTypeConfig(Section):
    """What the engine gets on one instance type, in a pool of machines with one GPU and with eight."""

    args: Strings = Field(
        default=(),
        description="The engine's own flags on machines of this type: they are added to `engine.args`, and a "
        "flag that stands there too is replaced with its values. Quote a type with a dot in its name.",
        examples=[["--tensor-parallel-size", "8", "--max-model-len", "32768"]],
    )


class EngineConfig(Section):
    """The inference server that every node of the pool runs."""

    kind: Kind = Field(
        default="simulated",
        description="vllm runs `vllm serve`; llamacpp llama.cpp's `llama-server`; sglang `sglang serve`; tgi "
        "`text-generation-launcher`; tei `text-embeddings-router`; ollama `ollama serve`; trtllm "
        "TensorRT-LLM's `trtllm-serve`; simulated runs a small server that behaves like vLLM.",
        examples=["vllm"],
    )
    task: Task = Field(
        default="generate",
        description="What the model does: generate texts, embed, which turns texts into numbers, or rerank, "
        "which orders texts by how well they answer a question. A node is ready once it has done that once.",
    )
    served_name: Annotated[str, SHARED] = Field(
        default="", description="Name under which clients ask for the model. Empty means the model's own."
    )
    allow_simulated: bool = Field(
        default=False,
        description="Whether the simulated engine may run with cloud.kind = aws, where machines cost "
        "money. Its answers are made up.",
    )
    args: Annotated[Strings, SHARED] = Field(
        default=(),
        description="The engine's own flags, passed through as they are. On EC2 {gpus} stands for the number "
        "of GPUs of the machine.",
        examples=[["--max-model-len", "8192", "--tensor-parallel-size", "{gpus}"]],
    )
    on: dict[str, OnTypeConfig] = Field(
        default={}, description="What differs on one instance type, named like it."
    )
    build: str = Field(
        default="",
        description="A word of yours for what all nodes have besides this table: image, engine, "
        "weights and the type of their numbers, whichever cloud, region or template they are of. With it you "
        "vouch that they are the same, and a broken stream goes on at any node. Change it whenever one of "
        "them changes. Empty: streams go on at nodes of the same image and template.",
        examples=["vllm-0.11-bf16"],
    )
    env: Texts = Field(
        default={},
        description="Environment variables added for the engine.",
        examples=[{"HF_HUB_OFFLINE": "1"}],
    )
    executable: str = Field(
        default="", description="Program to run instead of the engine's usual one: a path or a name on PATH."
    )
    run: Literal["process", "container"] = Field(
        default="process",
        description="Whether the engine is a program of the node, or runs in a container, with docker or "
        "podman.",
        examples=["container"],
    )
    image: str = Field(
        default="",
        description="The container's image, with its tag or digest. A node that lacks it fetches it.",
        examples=["vllm/vllm-openai:v0.18.0"],
    )
    container_args: Strings = Field(
        default=(),
        description="Flags of `docker run` or `podman run`, which come after ours.",
        examples=[["--shm-size", "32g", "--ulimit", "memlock=-1"]],
    )
    volumes: Strings = Field(
        default=(),
        description="What of the node the container sees, each as SOURCE:TARGET or SOURCE:TARGET:OPTIONS.",
        examples=[["/srv/models:/srv/models:ro"]],
    )
    runtime: Literal["", "docker", "podman"] = Field(
        default="", description="What runs containers on the nodes. Empty means whichever answers there."
    )
    api_key_file: FilePath | None = Field(
        default=None,
        description="File that holds the key which the engine asks its clients for.",
        json_schema_extra={"default": None},
    )
