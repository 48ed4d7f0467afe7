"""Whether a model's weights can be what `--quantization` says they are.

What it decides: nothing at run time; `validate` asks it which engines would end as soon as they start.
Why: vLLM quantises while it loads for some methods (fp8, bitsandbytes, ...); the others only read weights
that were quantised before, and end with "Cannot find the config file for awq" where they were not. A method
that contradicts what the weights say of themselves ends it, too.
Never: a verdict without a name to go by. A name can only make something likely, except where its publisher
writes the method into the name of everything that is quantised.

Source: vLLM 0.32, `QuantizationMethods`, `get_quant_config` and `ModelConfig._verify_quantization`; its
documentation, "Quantization". Older methods that it no longer lists (gguf, bitsandbytes) are known, too.

Example:
    >>> print(judge("meta-llama/Llama-3.1-8B", "awq").text)
    meta-llama/Llama-3.1-8B is not quantised with awq, so the engine ends at once (vLLM: "Cannot find the \
config file for awq"); name a repository that is, or leave --quantization out
    >>> judge("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "awq") is None
    True
"""

from __future__ import annotations

import re

from policies.value import value


@value
class Doubt:
    """What is wrong, as a sentence; `certain` where the engine cannot start."""

    certain: bool
    text: str


@value
class _Format:
    """Weights of one format: its `word`, how names say it, and the methods that read it."""

    word: str
    named: re.Pattern[str]
    methods: frozenset[str]


def _format(word: str, named: str, *methods: str) -> _Format:
    return _Format(word=word, named=re.compile(named, re.IGNORECASE), methods=frozenset(methods))


_FORMATS = (
    _format("awq", "awq", "awq", "auto_awq", "awq_marlin"),
    _format("gptq", "gptq", "gptq", "auto_gptq", "gptq_marlin"),
    _format("gguf", "gguf", "gguf"),
    _format("awq or gptq", "awq|gptq", "moe_wna16"),
    _format("modelopt", "modelopt|fp8|fp4", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"),
)
_BEFORE = _FORMATS[:2]  # a name with such a word says how the weights were quantised, and nothing else

_ON_LOAD = re.compile(
    r"fp8(_per_\w+)?|bitsandbytes|experts_int8|int8_per_channel_weight_only|nvfp4_per_token"
)

_PUBLISHERS = frozenset({"deepseek-ai", "google", "meta-llama", "microsoft", "mistralai", "openai", "qwen"})
"""Who publishes weights as they were trained, and names the method where they were quantised."""

_WIDE = frozenset({"float", "float32"})


def on_load(method: str) -> bool:
    """Whether weights are read as they were trained and quantised by the engine."""
    return _ON_LOAD.fullmatch(method.lower()) is not None


def judge(model: str, method: str, dtype: str = "") -> Doubt | None:
    """What is doubtful about a model (name or path) with these values of `--quantization` and `--dtype`,
    each empty where it is not given. None when nothing is."""
    method = method.lower()
    wanted = next((known for known in _FORMATS if method in known.methods), None)
    stated = [known for known in _BEFORE if known.named.search(model)]
    if wanted in _BEFORE or on_load(method):
        other = next((known for known in stated if method not in known.methods), None)
        if other is not None and wanted not in stated:
            return Doubt(
                certain=True,
                text=f"{method} is asked for, and {model} is quantised with {other.word}, so the engine ends "
                "at once; leave --quantization out: it reads the method from the model",
            )
    if wanted is not None and not wanted.named.search(model):
        return _not_quantised(model, method, wanted)
    if dtype.lower() in _WIDE and (wanted in _BEFORE or stated):
        word = (wanted or stated[0]).word
        return Doubt(
            certain=wanted is not None,
            text=f"weights quantised with {word} are computed in float16 or bfloat16, and --dtype {dtype} is "
            "asked for; leave --dtype out",
        )
    return None


def _not_quantised(model: str, method: str, wanted: _Format) -> Doubt:
    publisher, slash, _ = model.lower().partition("/")
    certain = bool(slash) and publisher in _PUBLISHERS
    ends = f'the engine ends at once (vLLM: "Cannot find the config file for {method}")'
    if certain:
        text = (
            f"{model} is not quantised with {wanted.word}, so {ends}; name a repository that is, or leave "
            "--quantization out"
        )
    else:
        text = (
            f"nothing in the name {model} says that it is quantised with {wanted.word}; where it is not, "
            f"{ends}"
        )
    return Doubt(certain=certain, text=text)
