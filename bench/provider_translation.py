"""What translating a provider's stream costs: CPU a token of each way, on replayed bytes.

Every way reads the same answer, an event a token and a read an event, in rounds of shuffled order: as
Anthropic's API streams it or as OpenAI's does. The limit is 60 µs of CPU a token. Beside ours stand the least
that any translation does (each event parsed and written by orjson), the same by the standard library, and,
with --peer naming the Python of an environment that has LiteLLM (make litellm-env), LiteLLM's reader of
the same events, without what its proxy does with them.

    python bench/provider_translation.py
    python bench/provider_translation.py --peer .venv-litellm/bin/python -o json
    python bench/provider_translation.py --quick

Exit code 1 when one of our ways is above the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import orjson
from gateway_rig import machine
from provider_streams import chunks, event, message, message_stream

from cloud.providers.kinds import wire_of
from cloud.sse import event_data
from orchestrator.gateway.asked import ask

LIMIT = 60.0  # µs of CPU a token
TOKENS = 2_000
ROUNDS = 7
WORD = " token"
HI = [{"role": "user", "content": "x" * 400}]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def message_events(tokens: int) -> list[bytes]:
    """The stream of a message with a text of so many tokens, a delta each."""
    first, *_, stop, delta, last = message_stream(message([{"type": "text", "text": ""}]))
    start = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    text = event("content_block_delta", index=0, delta={"type": "text_delta", "text": WORD})
    return [first, start, *[text] * tokens, stop, delta, last]


def chat_events(tokens: int) -> list[bytes]:
    """The chat stream of the same text."""
    told = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
    return chunks([WORD] * tokens, usage=told)


def ways(tokens: int) -> dict[str, Callable[[], int]]:
    """Each way: reads the whole stream once, and returns how many bytes the client gets."""
    told, said = message_events(tokens), chat_events(tokens)
    claude = wire_of("anthropic", "http://provider")
    other = wire_of("openai", "http://provider")
    inner = {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    chat = claude.request(inner, model="m", key="", stream=True, created=1).reader
    raw = json.dumps({"model": "m", "max_tokens": tokens, "stream": True, "messages": HI}).encode()
    asked = ask("POST", MESSAGES, "application/json", raw)
    kept = claude.native(raw, model="m", key="", stream=True, path=MESSAGES, headers={}).reader
    same = other.native(raw, model="m", key="", stream=True, path=CHAT, headers={}).reader

    def relayed(reader: Any, events: list[bytes]) -> int:
        relay = reader.relay()
        size = sum([len(relay.feed(data)) for data in events]) + len(relay.end())
        if not relay.whole or relay.usage is None:
            raise SystemExit(f"the replayed stream is not read: {relay.error}")
        return size

    def to_messages() -> int:
        relay, edge = same.relay(), asked.dialect.edge(asked)
        return sum([len(edge.feed(relay.feed(data))) for data in said]) + len(edge.closing())

    def each(events: list[bytes], load: Callable[[bytes], Any], dump: Callable[[Any], Any]) -> int:
        found = [event_data(data) for data in events]
        return sum([len(dump(load(data))) for data in found if data != b"[DONE]"])

    return {
        "anthropic provider, OpenAI client": lambda: relayed(chat, told),
        "openai provider, Anthropic client": to_messages,
        "anthropic provider, Anthropic client": lambda: relayed(kept, told),
        "openai provider, OpenAI client": lambda: relayed(same, said),
        "parsed and written, orjson": lambda: each(told, orjson.loads, orjson.dumps),
        "parsed and written, json": lambda: each(told, json.loads, json.dumps),
    }


OURS = 4  # of the ways: those held to the limit


def measured(tokens: int, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """CPU in µs a token, a figure for each round."""
    all_ways = ways(tokens)
    found: dict[str, list[float]] = {name: [] for name in all_ways}
    for _ in range(rounds):
        order = list(all_ways)
        rng.shuffle(order)
        for name in order:
            began = time.process_time()
            all_ways[name]()
            found[name].append((time.process_time() - began) / tokens * 1e6)
    return found


PEER = """
import json, sys, time
from litellm.llms.anthropic.chat.handler import ModelResponseIterator
events = [e for e in sys.stdin.buffer.read().split(b"\\n\\n") if e]
tokens, rounds = int(sys.argv[1]), int(sys.argv[2])
lines = [line for e in events for line in e.decode().splitlines()]
found = []
for _ in range(rounds):
    began = time.process_time()
    reader = ModelResponseIterator(streaming_response=iter(lines), sync_stream=True)
    size = sum(len(json.dumps(chunk, default=lambda part: part.model_dump())) for chunk in reader)
    found.append((time.process_time() - began) / tokens * 1e6)
print(json.dumps(found))
"""


def peer(python: str, tokens: int, rounds: int) -> list[float]:
    """LiteLLM's figures."""
    done = subprocess.run(
        [python, "-c", PEER, str(tokens), str(rounds)],
        input=b"".join(message_events(tokens)),
        capture_output=True,
        check=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the stream")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peer", default="", metavar="PYTHON", help="of an environment that has LiteLLM")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a moment: 3 rounds of 300 tokens")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    tokens, rounds = (300, 3) if options.quick else (options.tokens, options.rounds)
    found = measured(tokens, rounds, random.Random(options.seed))
    if options.peer:
        found["LiteLLM's reader, anthropic to chat"] = peer(options.peer, tokens, rounds)
    medians = {name: statistics.median(figures) for name, figures in found.items()}
    missed = [name for name in list(medians)[:OURS] if medians[name] > LIMIT]
    if options.output == "json":
        print(json.dumps({"limit_us": LIMIT, "tokens": tokens, "us_a_token": medians, "machine": machine()}))
    else:
        print(f"CPU a token, median of {rounds} rounds of {tokens} tokens (limit {LIMIT:.0f} µs)")
        for name, figures in found.items():
            print(f"  {name:40} {medians[name]:7.1f} µs   ({min(figures):.1f} to {max(figures):.1f})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
