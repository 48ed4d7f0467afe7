"""Flags and environment for vLLM's CPU build with a tiny model: several servers on a small machine.

For tests and for the demonstration with real engines; tools/vllm makes the installation and the model. On two
cores a server is ready 14 to 40 s after its start and takes 1.1 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CONTEXT = 2048
"""Tokens of context that `CPU_ARGS` leave room for; the tiny model has no more."""

CPU_ENV: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",  # the model is a folder: look nothing up
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # servers share the cores instead of each pinning all of them
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with "uni" below: two processes a server instead of three
    }
)

CPU_ARGS: tuple[str, ...] = (
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--distributed-executor-backend", "uni"),
    *("--max-model-len", str(CONTEXT)),
    *("--kv-cache-memory-bytes", str(64 * 2**20)),  # 65,536 tokens of the tiny model
)
