"""The command lines: our own flags, then, after ``--``, those of the engine that is played.

Of an engine's flags those are read that an orchestrator or a test writes; others pass, as they would there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cloud.engines.replay.ollama import Ollama
from cloud.engines.replay.sglang import Sglang
from cloud.engines.replay.shape import Setup, Shape
from cloud.engines.replay.tei import Tei
from cloud.engines.replay.tgi import Tgi
from cloud.engines.replay.trtllm import Trtllm

SHAPES: Final[Mapping[str, type[Shape]]] = MappingProxyType(
    {shape.kind: shape for shape in (Sglang, Tgi, Tei, Ollama, Trtllm)}
)
"""Every engine that is played, by its kind."""


def _sglang(args: Sequence[str], own: argparse.Namespace) -> Setup:
    parser = _parser()
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--served-model-name", default="")
    parser.add_argument("--max-running-requests", type=int, default=8)
    parser.add_argument("--max-queued-requests", type=int, default=None)
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--api-key", default="")
    found, _ = parser.parse_known_args(args)
    return Setup(
        model=found.model_path,
        name=found.served_model_name or found.model_path,
        task=own.task,
        host=found.host,
        port=found.port,
        key=found.api_key,
        most_running=found.max_running_requests,
        most_waiting=found.max_queued_requests,
        context=found.context_length,
    )


def _tgi(args: Sequence[str], own: argparse.Namespace) -> Setup:
    parser = _parser("--hostname")
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--max-concurrent-requests", type=int, default=128)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--max-total-tokens", type=int, default=2048)
    parser.add_argument("--graceful-termination-timeout", type=float, default=90.0)
    parser.add_argument("--api-key", default="")
    found, _ = parser.parse_known_args(args)
    return Setup(
        model=found.model_id,
        name=found.model_id,
        task=own.task,
        host=found.host,
        port=found.port,
        key=found.api_key,
        most_running=found.max_batch_size,
        most_waiting=max(0, found.max_concurrent_requests - found.max_batch_size),
        context=found.max_total_tokens,
        most_batched=32,
        grace=found.graceful_termination_timeout,
    )


def _tei(args: Sequence[str], own: argparse.Namespace) -> Setup:
    parser = _parser("--hostname")
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--served-model-name", default="")
    parser.add_argument("--max-concurrent-requests", type=int, default=512)
    parser.add_argument("--max-client-batch-size", type=int, default=32)
    parser.add_argument("--max-batch-requests", type=int, default=8)
    parser.add_argument("--auto-truncate", nargs="?", const="true", default="true")
    parser.add_argument("--api-key", default="")
    found, _ = parser.parse_known_args(args)
    return Setup(
        model=found.model_id,
        name=found.served_model_name or found.model_id,
        task=own.task,
        host=found.host,
        port=found.port,
        key=found.api_key,
        most_running=found.max_batch_requests,
        most_waiting=max(0, found.max_concurrent_requests - found.max_batch_requests),
        context=512,
        most_batched=found.max_client_batch_size,
        cuts=found.auto_truncate == "true",
    )


def _ollama(args: Sequence[str], own: argparse.Namespace) -> Setup:
    parser = argparse.ArgumentParser(prog="ollama", allow_abbrev=False)
    parser.add_argument("serve", choices=["serve"])
    parser.parse_args(args)
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    return Setup(
        model=own.model,
        name=own.model,
        task=own.task,
        host=host,
        port=int(port),
        most_running=int(os.environ.get("OLLAMA_NUM_PARALLEL", "1")),
        most_waiting=int(os.environ.get("OLLAMA_MAX_QUEUE", "512")),
        cuts=True,
    )


def _trtllm(args: Sequence[str], own: argparse.Namespace) -> Setup:
    parser = _parser()
    parser.add_argument("model")
    parser.add_argument("--max_batch_size", type=int, default=8)
    parser.add_argument("--max_seq_len", type=int, default=2048)
    found, _ = parser.parse_known_args(args)
    name = found.model.rstrip("/").rpartition("/")[2] if os.path.isdir(found.model) else found.model
    return Setup(
        model=found.model,
        name=name,
        task=own.task,
        host=found.host,
        port=found.port,
        most_running=found.max_batch_size,
        context=found.max_seq_len,
    )


def _parser(host: str = "--host") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(host, dest="host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser


_SETUPS: Final[Mapping[str, Callable[[Sequence[str], argparse.Namespace], Setup]]] = MappingProxyType(
    {"sglang": _sglang, "tgi": _tgi, "tei": _tei, "ollama": _ollama, "trtllm": _trtllm}
)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Shape]:
    """Our flags, and the engine as its own flags set it up. Exits with code 2 and one line on a mistake."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    own, rest = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m cloud.engines.replay",
        description="Plays an inference server by recorded shapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("kind", choices=sorted(SHAPES), help="the engine that is played")
    add("--task", choices=("generate", "embed", "rerank"), default="generate", help="what its model does")
    add("--model", default="llama3.2:1b", help="the model that an Ollama has")
    add("--load-time", type=float, default=0.0, help="seconds that the model takes to load")
    add("--tokens-per-second", type=float, default=50.0, help="rate of each running request")
    add("--watch-every", type=float, default=5.0, help="seconds between SGLang's looks at its end")
    add("--faults", action="store_true", help="offer POST /faults/... (tests only)")
    options = parser.parse_args(own)
    return options, SHAPES[options.kind](_SETUPS[options.kind](rest, options))
