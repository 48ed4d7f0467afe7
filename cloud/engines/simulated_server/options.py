"""The command line of the simulated engine. Flags that vLLM has too carry vLLM's names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from cloud.engines.keep_alive import ENGINES_OWN, KEEP_ALIVE


def _number(kind: type[float] | type[int], lowest: float, text: str) -> Callable[[str], float | int]:
    """A parser of numbers from `lowest` on, with one clear message for everything else."""

    def convert(value: str) -> float | int:
        try:
            number = kind(value)
        except ValueError:
            number = kind(lowest) - 1
        if not lowest <= number < float("inf"):
            raise argparse.ArgumentTypeError(f"{value!r} is not {text}")
        return number

    return convert


_seconds = _number(float, 0.0, "a number of seconds from 0 on")
_rate = _number(float, 0.001, "a rate of at least 0.001")
_count = _number(int, 0, "a whole number from 0 on")
_positive = _number(int, 1, "a whole number from 1 on")


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, and vLLM's variable for idle connections (here in parts of a second too).

    Exits with code 2 and one line on a mistake.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cloud.engines.simulated_server",
        description="An OpenAI-compatible server that behaves like vLLM where an orchestrator touches it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="what /v1/models shows as the model's origin")
    add("--served-model-name", help="the name clients ask for (default: the model)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_count, default=8000, help="port to listen on; 0 picks one and prints it")
    add("--api-key", default="", help="key that paths under /v1 demand")
    add("--seed", type=int, default=0, help="which model it plays: the same seed gives the same texts")
    add("--load-time", type=_seconds, default=0.0, help="seconds before it listens; until then refused")
    add("--tokens-per-second", type=_rate, default=50.0, help="rate of each running request")
    add("--time-to-first-token", type=_seconds, default=0.05, help="seconds from a free slot to a token")
    add("--max-num-seqs", type=_positive, default=8, help="requests that run at once; the rest wait")
    add("--max-num-queued-reqs", type=_count, default=0, help="requests in flight before 503; 0: no limit")
    add("--max-model-len", type=_positive, default=8192, help="tokens of context, prompt and output")
    add("--mean-length", type=_count, default=0, help="mean tokens before a text ends by itself; 0: never")
    add("--shutdown-timeout", type=_seconds, default=0.0, help="seconds a SIGTERM lets requests finish")
    add(
        "--drain-answer",
        choices=("abort", "error", "by-prompt"),
        default="abort",
        help="what new requests get while it drains: 200 with an empty aborted text, or 500, or (by-prompt, "
        "as vLLM does) 500 for text and an aborted 200 for token ids",
    )
    add(
        "--runner",
        choices=("generate", "pooling"),
        default="generate",
        help="pooling: serve numbers for texts and nothing else; generate: serve texts, and numbers too",
    )
    add("--lora-modules", nargs="+", type=_adapter, default=[], help="adapters, NAME=PATH each")
    add("--enable-lora", action="store_true", help="taken, as are the next two: adapters always load")
    add("--max-loras", type=_positive, default=1, help="of no effect")
    add("--max-lora-rank", type=_positive, default=16, help="of no effect")
    add("--adapter-load-time", type=_seconds, default=0.0, help="seconds to load an adapter")
    add("--max-cpu-loras", type=_count, default=0, help="adapters in memory at a time; 0: any number")
    add("--enable-auto-tool-choice", action="store_true", help="let the model call tools; needs a parser")
    add("--tool-call-parser", default="", help="any name: finds the calls of tools in texts")
    add("--reasoning-parser", default="", help="any name: tells reasoning from the rest of texts")
    add("--enable-scale-out", action="store_true", help="offer render, generate and derender; else 403")
    add("--enable-tokenizer-info-endpoint", action="store_true", help="offer /tokenizer_info; else 404")
    add("--responses-store", action="store_true", help="keep responses; vLLM has a variable for this")
    add("--faults", action="store_true", help="offer POST /faults/... (tests only)")
    options = parser.parse_args(argv)
    try:
        options.keep_alive = _seconds(os.environ.get(KEEP_ALIVE, ENGINES_OWN))
    except argparse.ArgumentTypeError as error:
        parser.error(f"{KEEP_ALIVE}: {error}")
    options.served_model_name = options.served_model_name or options.model
    return options
