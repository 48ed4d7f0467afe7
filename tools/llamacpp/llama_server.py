"""`llama-server` out of the wheel `xllamacpp`: llama.cpp's own HTTP server, without a compiler.

It takes the flags of the program of that name that this project and its tests write, by the same names, and
refuses all others as that program does. `install.sh` puts it into its environment as `bin/llama-server`.
(xllamacpp 2026.10: `Server(CommonParams)` is the C++ of llama.cpp's tools/server; it listens while it loads.)
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import xllamacpp

POOLING = ("none", "mean", "cls", "last", "rank")


def parser() -> argparse.ArgumentParser:
    """The flags, in the words of llama.cpp's tools/server/README.md."""
    flags = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    add = flags.add_argument
    add("-m", "--model", required=True, type=Path, help="the model, a GGUF file")
    add("-a", "--alias", default="", help="names of the model for its clients, separated by commas")
    add("--host", default="127.0.0.1", help="address to listen at")
    add("--port", type=int, default=8080, help="port to listen at")
    own = os.environ.get("LLAMA_API_KEY")
    add("--api-key", action="append", default=[own] if own else [], help="key that clients must send")
    add("-np", "--parallel", type=int, default=4, help="requests that run at once")
    add(
        "-c",
        "--ctx-size",
        type=int,
        default=0,
        help="tokens of context of all requests that run; 0: the model's",
    )
    add(
        "-kvu",
        "--kv-unified",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="one cache for all requests that run",
    )
    add("-t", "--threads", type=int, default=-1, help="threads that compute")
    add("-b", "--batch-size", type=int, default=2048, help="tokens of a prompt that are taken at once")
    add("-ub", "--ubatch-size", type=int, default=512, help="tokens that are computed at once")
    add("-ngl", "--gpu-layers", type=int, default=-1, help="layers that a GPU computes")
    add("--metrics", action="store_true", help="answer /metrics")
    add("--slots", action=argparse.BooleanOptionalAction, default=True, help="answer /slots")
    add("--embedding", "--embeddings", action="store_true", help="give embeddings and nothing else")
    add("--reranking", "--rerank", action="store_true", help="order texts and do nothing else")
    add("--pooling", choices=POOLING, help="what of a text's embeddings is given")
    add("--lora", action="append", default=[], type=Path, help="a LoRA adapter, a GGUF file")
    add("--no-webui", "--no-ui", action="store_true", help="serve no page for people")
    return flags


def parameters(flags: argparse.Namespace) -> xllamacpp.CommonParams:
    """What the server is made of."""
    made = xllamacpp.CommonParams()
    made.model.path = str(flags.model)
    made.model_alias = {name.strip() for name in flags.alias.split(",") if name.strip()}
    made.hostnames, made.port = [flags.host], flags.port
    made.api_keys = flags.api_key
    made.n_parallel, made.n_ctx = flags.parallel, flags.ctx_size
    made.kv_unified = flags.kv_unified
    made.n_batch, made.n_ubatch, made.n_gpu_layers = flags.batch_size, flags.ubatch_size, flags.gpu_layers
    if flags.threads > 0:
        made.cpuparams.n_threads = made.cpuparams_batch.n_threads = flags.threads
    made.endpoint_metrics, made.endpoint_slots, made.ui = flags.metrics, flags.slots, not flags.no_webui
    made.embedding = flags.embedding or flags.reranking
    if flags.reranking:
        made.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    elif flags.pooling is not None:
        made.pooling_type = getattr(
            xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{flags.pooling.upper()}"
        )
    made.lora_adapters = [_adapter(path) for path in flags.lora]
    return made


def _adapter(path: Path) -> xllamacpp.CommonAdapterLoraInfo:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = str(path), 1.0
    return adapter


def main(words: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises SystemExit for flags, and for a model that cannot be loaded."""
    flags = parser().parse_args(words)
    if not flags.model.is_file():
        raise SystemExit(f"llama-server: {flags.model}: there is no such model")
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the server's own threads begin, which inherit it: the signal waits for `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server = xllamacpp.Server(parameters(flags))
    except RuntimeError as error:
        raise SystemExit(f"llama-server: {error}") from None
    # At once with its ends of line: the server's own threads write to the same place.
    os.write(1, f"\nllama-server: ready at {server.listening_address}\n".encode())
    signal.sigwait(ends)
    del server  # closes its listener and ends its requests


if __name__ == "__main__":
    main()
