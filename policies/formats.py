"""In which form weights are stored, by the names that say so, and which GPUs read it.

What it decides: nothing at run time; it tells `validate` how many bytes weights take and whether a GPU reads
them at all.
Why: FP8 halves the weights on a GPU that cannot compute in it, too; AWQ on a V100 ends the engine.
Never: a guess for a GPU that is not in the table: it reads everything.

Source: vLLM 0.32, "Quantization" (supported hardware; FP8 W8A8: computed from compute capability 8.9 on,
weight-only with Marlin from 7.5 on; INT8 W8A8: not on 10.0 and newer; AWQ from 7.5 on; GPTQ from 7.0 on) and
its recipe for gpt-oss (MXFP4 on Ampere with Marlin). Compute capabilities: NVIDIA, "CUDA GPUs". What a
parameter takes: groups of 128 share a scale of 16 bits and a zero point (AWQ, GPTQ), of 32 a scale of 8 bits
(MXFP4), of 16 one of 8 bits (NVFP4), blocks of 128 x 128 one of 32 bits (FP8).

Example:
    >>> format_in("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4").word
    'AWQ'
    >>> refuses(format_in("some-AWQ"), "V100")
    'vLLM reads AWQ from compute capability 7.5 on, and V100 has 7.0'
"""

from __future__ import annotations

import re

from policies.value import value


@value
class Format:
    """A form of weights: its `word`, `bits` of a parameter and how many it takes with its scales (`stored`),
    the oldest compute capability that reads it, the first one that does not, and the first one that computes
    in it (0: none need to)."""

    word: str
    bits: int
    stored: float
    oldest: float = 0.0
    below: float = 99.0
    computes: float = 0.0


WHOLE = Format(word="", bits=16, stored=16.0)
"""Weights that nobody quantised."""

UNPACKED = Format(word="16 bits", bits=16, stored=16.0)
"""Weights of which somebody says so: also where their publisher's are quantised (DeepSeek-R1-BF16)."""

DOUBLE = Format(word="", bits=32, stored=32.0)
"""The same in 32 bits, as ``--dtype float32`` holds them."""

FP8 = Format(word="FP8", bits=8, stored=8.0, oldest=7.5, computes=8.9)
AWQ = Format(word="AWQ", bits=4, stored=4.16, oldest=7.5)
GPTQ = Format(word="GPTQ", bits=4, stored=4.16, oldest=7.0)

_NAMED = (
    (r"mxfp4", Format(word="MXFP4", bits=4, stored=4.25, oldest=8.0)),
    (r"nvfp4|(?<![a-z])fp4", Format(word="FP4", bits=4, stored=4.5, oldest=8.0, computes=10.0)),
    (r"gptq[-_]?int8|gptq[-_]?8bit", Format(word="GPTQ", bits=8, stored=8.16, oldest=7.0)),
    (r"awq", AWQ),
    (r"gptq", GPTQ),
    (r"bnb|bitsandbytes|nf4", Format(word="bitsandbytes", bits=4, stored=4.5, oldest=7.0)),
    (r"w4a16|int4|4[-_]?bit|q4", Format(word="INT4", bits=4, stored=4.16, oldest=7.5)),
    (r"fp8", FP8),
    (r"w8a16", Format(word="INT8 (weight-only)", bits=8, stored=8.16, oldest=7.5)),
    (r"w8a8|int8", Format(word="INT8", bits=8, stored=8.0, oldest=7.5, below=10.0)),
    (r"8[-_]?bit|q8", Format(word="8 bits", bits=8, stored=8.5)),
    (r"(?<![a-z0-9])(bf16|fp16|f16|bfloat16|float16)(?![a-z0-9])", UNPACKED),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), known) for pattern, known in _NAMED)

CAPABILITY = {
    "V100": 7.0,
    "T4": 7.5,
    "T4g": 7.5,
    "A100": 8.0,
    "A10G": 8.6,
    "L4": 8.9,
    "L40S": 8.9,
    "H100": 9.0,
    "H200": 9.0,
    "B200": 10.0,
    "B300": 10.3,
    "RTX PRO 4500": 12.0,
    "RTX PRO Server 6000": 12.0,
}
"""The compute capability of each kind of GPU that EC2 has."""


def format_in(text: str) -> Format:
    """The form that a model's name or a value of `--quantization` states; whole weights where none is."""
    return next((known for pattern, known in _PATTERNS if pattern.search(text)), WHOLE)


def refuses(form: Format, kind: str) -> str:
    """Why vLLM does not read such weights on that kind of GPU, as a sentence; empty where it does."""
    has = CAPABILITY.get(kind, form.oldest)
    if has < form.oldest:
        return f"vLLM reads {form.word} from compute capability {form.oldest} on, and {kind} has {has}"
    if has >= form.below:
        return f"vLLM reads {form.word} below compute capability {form.below}, and {kind} has {has}"
    return ""


def weight_only(form: Format, kind: str) -> bool:
    """Whether such weights are unpacked to be computed in 16 bits: they save memory, and no time."""
    return CAPABILITY.get(kind, form.computes) < form.computes
