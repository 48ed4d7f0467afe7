"""Write a 1 MB Llama with random weights as GGUF, for tests that need a real engine but no real answers.

    make_tiny_model.py FILE [--seed N] [--reranker | --adapter]

The same options write the same bytes on any machine; the shape is that of the tiny model of tools/vllm, but
for the length. Its greedy text varies, and contains split UTF-8 characters. It wants to stop at random: ask
for `ignore_eos` to get an exact number of tokens. It also likes to begin a call of a tool: where a request
brings tools, llama.cpp holds what follows to their schemas, so a request that requires a call gets one within
some tens of tokens. The standard library is enough to run this.

With --reranker it is a Qwen3 of the same shape that gives a text two scores, yes and no. With --adapter it is
a LoRA adapter of the model without these options; another seed says something else.

Sources: ggml's docs/gguf.md (version 3 of the format), llama.cpp's names of keys and tensors
(gguf-py/gguf/constants.py), of those of an adapter llama.cpp's convert_lora_to_gguf.py.
"""

from __future__ import annotations

import argparse
import array
import itertools
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

SPECIAL_TOKENS: Final = ("<|pad|>", "<|bos|>", "<|eos|>", "<|start|>", "<|end|>")
PAD_ID, BOS_ID, EOS_ID, END_ID = 0, 1, 2, 4
CALL_MARKS: Final = ("<tool_call>", "</tool_call>")
CALL_ID: Final = len(SPECIAL_TOKENS)
CALL_LIKED: Final = 3.0  # the mark's logit varies so many times as much as others': it is often the highest

HEAD_SIZE: Final = 32
HEADS: Final = 2
HIDDEN: Final = HEADS * HEAD_SIZE
LAYERS: Final = 2
VOCABULARY: Final = 1024
CONTEXT: Final = 16384  # more than anything needs: a stream can be as long as a test wants it
WEIGHT_STD: Final = 0.25  # smaller values make greedy text repeat itself
RERANKER: Final = "qwen3"
LABELS: Final = ("yes", "no")
RANK: Final = 4  # of an adapter
ALIGNMENT: Final = 32  # bytes; what GGUF takes where the file names no other

# Jinja: every message between markers; tools and calls of them in the manner of Hermes, which llama.cpp's
# reader of templates knows how to hold a model to.
CHAT_TEMPLATE: Final = """\
{%- if tools -%}
<|start|>system
Tools:
{% for tool in tools -%}
{{ tool | tojson }}
{% endfor -%}
<|end|>
{% endif -%}
{%- for message in messages -%}
<|start|>{{ message['role'] }}
{{ message['content'] or '' }}
{%- for call in message['tool_calls'] or [] -%}
{%- set asked = call['function'] -%}
<tool_call>{"name": "{{ asked['name'] }}", "arguments": {{ asked['arguments'] | tojson }}}</tool_call>
{%- endfor -%}
<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{% endif -%}"""

# Enough text for the merges of a byte-level BPE, with several scripts so that some tokens end inside a
# character.
SENTENCES: Final = (
    "Spot capacity is cheap until the provider wants it back.",
    "A node that drains takes no new work and finishes what it has.",
    "How many tokens per second does one engine produce under load?",
    "role user assistant system content prompt stream choices finish_reason length stop tool function name",
    "for node in pool: if node.ready and not node.draining: serve(node)",
    '{"model": "tiny", "prompt": [3, 1, 4, 1, 5], "max_tokens": 64, "stream": true}',
    "Grüße aus Köln, déjà vu, smørrebrød, Ελλάδα, Україна, 日本語, 한국어, ☀️🌊🚦",
)

_WORDS: Final = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's types of values
_F32: Final = 0  # ggml's type of tensors of float32
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama.cpp's types of tokens
_EVERY_TENSOR_F32: Final = 0  # llama.cpp's type of a whole file

Value = str | int | float | bool | Sequence[str] | Sequence[int]
Tensor = tuple[tuple[int, ...], "array.array[float]"]


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in the vocabulary of a byte-level BPE, as GPT-2's."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(0x100)]


def merges(texts: Iterable[str], most: int) -> list[tuple[str, str]]:
    """Pairs of tokens in the order in which they are joined: the most frequent pair first."""
    letters = byte_letters()
    words = [[letters[byte] for byte in word.encode()] for text in texts for word in _WORDS.findall(text)]
    found: list[tuple[str, str]] = []
    while len(found) < most:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append(best)
        words = [_joined(word, best) for word in words]
    return found


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for token in word:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def vocabulary(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Every token with its type, in the order of the ids: all that the model can say decodes to text."""
    tokens = dict.fromkeys(SPECIAL_TOKENS, _CONTROL)
    tokens |= dict.fromkeys(CALL_MARKS, _USER_DEFINED)
    tokens |= dict.fromkeys(byte_letters(), _NORMAL)
    tokens |= dict.fromkeys((left + right for left, right in pairs), _NORMAL)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    for serial in range(VOCABULARY - len(tokens)):
        tokens[f" {alphabet[serial // 26 % 26]}{alphabet[serial % 26]}{serial}"] = _USER_DEFINED
    return tokens


def settings(architecture: str) -> dict[str, Value]:
    """What llama.cpp needs to know of the model and its tokens."""
    pairs = merges(SENTENCES, VOCABULARY - len(SPECIAL_TOKENS) - len(CALL_MARKS) - 0x100)
    tokens = vocabulary(pairs)
    shape: dict[str, Value] = {
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": 2 * HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_SIZE,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCABULARY,
    }
    if architecture == RERANKER:
        shape |= {"attention.key_length": HEAD_SIZE, "attention.value_length": HEAD_SIZE}
        shape["classifier.output_labels"] = LABELS
    return {
        "general.architecture": architecture,
        "general.name": "tiny",
        "general.alignment": ALIGNMENT,
        "general.file_type": _EVERY_TENSOR_F32,
        **{f"{architecture}.{key}": value for key, value in shape.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": list(tokens.values()),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
        "tokenizer.ggml.padding_token_id": PAD_ID,
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.eot_token_id": END_ID,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def adapter_settings() -> dict[str, Value]:
    """What llama.cpp needs to know of an adapter."""
    return {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(2 * RANK),
    }


def adapter_weights(seed: int) -> dict[str, Tensor]:
    """The tensors of an adapter on the attention of the model."""
    matrix = matrices(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}.weight.lora_a"] = matrix(HIDDEN, RANK)
            tensors[f"blk.{layer}.{name}.weight.lora_b"] = matrix(RANK, HIDDEN)
    return tensors


def matrices(seed: int) -> Callable[..., Tensor]:
    """Makes random matrices: of so many inputs, outputs, and of this spread."""
    draw = random.Random(seed)  # noqa: S311 - weights, no secrets

    def matrix(inputs: int, outputs: int, std: float = WEIGHT_STD) -> Tensor:
        return (inputs, outputs), array.array("f", (draw.gauss(0.0, std) for _ in range(inputs * outputs)))

    return matrix


def weights(seed: int, architecture: str) -> dict[str, Tensor]:
    """Each tensor with its shape, the innermost dimension first as in GGUF."""
    matrix = matrices(seed)
    said = matrix(HIDDEN, VOCABULARY)
    for place in range(CALL_ID * HIDDEN, (CALL_ID + 1) * HIDDEN):
        said[1][place] *= CALL_LIKED
    ones = (HIDDEN,), array.array("f", [1.0] * HIDDEN)
    tensors = {
        "token_embd.weight": matrix(HIDDEN, VOCABULARY, std=1.0),
        "output_norm.weight": ones,
        "output.weight": said,
    }
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = ones
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}.weight"] = matrix(HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"blk.{layer}.{name}.weight"] = matrix(HIDDEN, 2 * HIDDEN)
        tensors[f"blk.{layer}.ffn_down.weight"] = matrix(2 * HIDDEN, HIDDEN)
    if architecture == RERANKER:
        for layer in range(LAYERS):
            for name in ("attn_q_norm", "attn_k_norm"):
                tensors[f"blk.{layer}.{name}.weight"] = (HEAD_SIZE,), array.array("f", [1.0] * HEAD_SIZE)
        tensors["cls.output.weight"] = matrix(HIDDEN, len(LABELS))
    return tensors


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A value with its type before it."""
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
    kind, items = (
        (_STRING, [_text(item) for item in value if isinstance(item, str)])
        if isinstance(value[0], str)
        else (_INT32, [struct.pack("<i", item) for item in value])
    )
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)


def gguf(keys: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> bytes:
    """The file: keys and values, the tensors' shapes and places, then their numbers."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    head += [_text(key) + _value(value) for key, value in keys.items()]
    numbers: list[bytes] = []
    offset = 0
    for name, (shape, values) in tensors.items():
        place = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        head.append(_text(name) + place)
        numbers.append(_padded(values.tobytes()))
        offset += len(numbers[-1])
    return _padded(b"".join(head)) + b"".join(numbers)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def main() -> None:
    """Write the file under another name first, so that its presence means that it is complete."""
    parser = argparse.ArgumentParser(description="Make a 1 MB Llama with random weights, as GGUF.")
    parser.add_argument("file", type=Path, help="where the model goes")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another model (default 0)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--reranker", action="store_true", help="a model that scores texts instead")
    other.add_argument("--adapter", action="store_true", help="a LoRA adapter of the model instead")
    arguments = parser.parse_args()
    architecture = RERANKER if arguments.reranker else "llama"
    if sys.byteorder != "little":
        raise SystemExit("make_tiny_model: numbers are written as the machine has them: little-endian only")
    file: Path = arguments.file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    if arguments.adapter:
        part.write_bytes(gguf(adapter_settings(), adapter_weights(arguments.seed)))
    else:
        part.write_bytes(gguf(settings(architecture), weights(arguments.seed, architecture)))
    part.replace(file)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
