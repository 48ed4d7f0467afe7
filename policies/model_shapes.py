"""The shapes of known models, by their names: how many parameters, and what a token's cache takes.

What it decides: nothing; it looks up.
Why: the cache of a token differs twentyfold between models of one size (Llama 3.1 8B 128 KiB, Llama 2 7B
512 KiB, DeepSeek-V3 with 671 billion parameters 69 KiB), and so does what an adapter takes.
Never: a guess. A model of no known shape has no answer, and `policies.model_fit` estimates by its size.

Source: config.json of each model on Hugging Face: num_hidden_layers, num_attention_heads,
num_key_value_heads, head_dim, hidden_size, intermediate_size (of one expert: moe_intermediate_size),
vocab_size, tie_word_embeddings, sliding_window, kv_lora_rank + qk_rope_head_dim; the parameters by their
model cards. What published FP8 and MXFP4 weights keep in 16 bits: Meta's FP8 of 405 billion quantises the
MLPs alone (57.75 GiB on each of 8 GPUs, vllm-project/vllm#6746), gpt-oss the experts alone (60.8 and 12.8
GiB, its model card).

Example:
    >>> shape("meta-llama/Llama-3.1-8B-Instruct").token() / 1024
    128.0
    >>> shape("deepseek-ai/DeepSeek-R1-0528").token() / 1024
    68.625
    >>> shape("acme/odd-7B") is None
    True
"""

from __future__ import annotations

import re
from typing import Any

from policies.value import replace, value


@value
class Shape:
    """One model."""

    parameters: float  # how many
    layers: int  # that hold attention
    heads: int
    kv_heads: int  # heads of keys and values
    head: int  # numbers of a key or value for each of `kv_heads`
    hidden: int
    inner: int  # width of an MLP, or of one expert
    vocabulary: int
    tied: bool = False  # input and output embeddings are the same
    whole: int | None = None  # layers that hold the whole request; None: all
    window: int = 0  # last tokens that the others hold; 0: linear attention, a state that does not grow
    latent: int = 0  # numbers that a layer holds for a token instead, whatever its heads
    experts: int = 0
    expert_layers: int | None = None  # layers with experts; None: all
    kept: float = 0.0  # parameters beside the embeddings that quantised weights keep in 16 bits
    native: str = ""  # form of its publisher's weights, where those are quantised
    block: int = 0  # FP8 weights have a scale for each block of so many rows

    @property
    def spread(self) -> float:
        """Parameters in experts, which may lie on GPUs that have other copies of the rest."""
        layers = self.layers if self.expert_layers is None else self.expert_layers
        return 3.0 * self.experts * layers * self.hidden * self.inner

    @property
    def wide(self) -> float:
        """Parameters that stay in 16 bits when the others are quantised: embeddings, and what is `kept`."""
        return self.vocabulary * self.hidden * (1.0 if self.tied else 2.0) + self.kept

    def token(self, bits: int = 16) -> float:
        """Bytes of the cache of a token in all layers that hold the whole request."""
        return self._layer(bits) * self._whole

    def request(self, tokens: int, bits: int = 16, batch: int = 8192) -> float:
        """Bytes of the cache of a request: layers with a window hold that and the `batch` of tokens that
        are computed at once."""
        within = min(tokens, self.window + batch) if self.window else 0
        return self._layer(bits) * (self._whole * tokens + (self.layers - self._whole) * within)

    def adapter(self, rank: int, tensor: int = 1) -> float:
        """Bytes on each of `tensor` GPUs of the place of one LoRA adapter of that rank, in 16 bits.

        Of a matrix that is cut by its outputs (queries, keys, values, the MLP's first two) the first factor
        is whole on each GPU and the second cut; of one that is cut by its inputs the other way round.
        """
        width, mlp = self.heads * self.head, max(1, self.experts)
        by_outputs = 3 * self.hidden + (width + 2 * self.kv_heads * self.head) / tensor
        by_inputs = width / tensor + self.hidden
        wide = mlp * (3 * self.hidden + 3 * self.inner / tensor)
        head = self.hidden + self.vocabulary
        return 2.0 * rank * (self.layers * (by_outputs + by_inputs + wide) + head)

    def splits(self, tensor: int) -> bool:
        """Whether attention can be divided among so many GPUs."""
        by_kv = self.kv_heads % tensor == 0 or tensor % self.kv_heads == 0
        return self.heads % tensor == 0 and (bool(self.latent) or by_kv)

    @property
    def _whole(self) -> int:
        return self.layers if self.whole is None else self.whole

    def _layer(self, bits: int) -> float:
        return (self.latent or 2 * self.kv_heads * self.head) * bits / 8.0


def _dense(
    billions: float,
    layers: int,
    heads: tuple[int, int, int],
    hidden: int,
    inner: int,
    words: int,
    **more: Any,
) -> Shape:
    """`heads`: of queries, of keys and values, and their size. `words`: the vocabulary."""
    queries, kv, size = heads
    return Shape(
        parameters=billions * 1e9,
        layers=layers,
        heads=queries,
        kv_heads=kv,
        head=size,
        hidden=hidden,
        inner=inner,
        vocabulary=words,
        **more,
    )


_LLAMA_8B = _dense(8.03, 32, (32, 8, 128), 4096, 14336, 128256)
_LLAMA_70B = _dense(70.55, 80, (64, 8, 128), 8192, 28672, 128256)
_LLAMA_405B = _dense(405.85, 126, (128, 8, 128), 16384, 53248, 128256)
_QWEN_1_5B = _dense(1.54, 28, (12, 2, 128), 1536, 8960, 151936, tied=True)
_QWEN_7B = _dense(7.62, 28, (28, 4, 128), 3584, 18944, 152064)
_QWEN_14B = _dense(14.77, 48, (40, 8, 128), 5120, 13824, 152064)
_QWEN_32B = _dense(32.76, 64, (40, 8, 128), 5120, 27648, 152064)
_QWEN3_8B = _dense(8.19, 36, (32, 8, 128), 4096, 12288, 151936, block=128)
_DEEPSEEK_V3 = _dense(
    671.0, 61, (128, 128, 128), 7168, 2048, 129280,
    latent=576, experts=256, expert_layers=58, native="fp8", block=128,
)  # fmt: skip

_NAMED = (
    (r"r1-distill-llama-8b|llama-?3(\.1)?-8b", _LLAMA_8B),
    (r"r1-distill-llama-70b|llama-?3(\.[13])?-70b", _LLAMA_70B),
    (r"llama-?3\.1-405b(-instruct)?-fp8", replace(_LLAMA_405B, kept=86.2e9)),
    (r"llama-?3\.1-405b", _LLAMA_405B),
    (r"llama-?3\.2-1b", _dense(1.24, 16, (32, 8, 64), 2048, 8192, 128256, tied=True)),
    (r"llama-?3\.2-3b", _dense(3.21, 28, (24, 8, 128), 3072, 8192, 128256, tied=True)),
    (r"llama-?2-7b", _dense(6.74, 32, (32, 32, 128), 4096, 11008, 32000)),
    (r"llama-?2-13b", _dense(13.02, 40, (40, 40, 128), 5120, 13824, 32000)),
    (r"llama-?2-70b", _dense(68.98, 80, (64, 8, 128), 8192, 28672, 32000)),
    # vLLM keeps the whole request in the layers with chunked attention, too (vllm-project/vllm#16118).
    (r"llama-?4-scout", _dense(108.6, 48, (40, 8, 128), 5120, 8192, 202048, experts=16)),
    (
        r"llama-?4-maverick",
        _dense(401.6, 48, (40, 8, 128), 5120, 8192, 202048, experts=128, expert_layers=24),
    ),
    (r"r1-distill-qwen-1\.5b|qwen2\.5-(coder-|math-)?1\.5b", _QWEN_1_5B),
    (r"r1-distill-qwen-7b|qwen2(\.5)?-(coder-|math-)?7b", _QWEN_7B),
    (r"r1-distill-qwen-14b|qwen2\.5-(coder-)?14b", _QWEN_14B),
    (r"r1-distill-qwen-32b|qwen2\.5-(coder-)?32b|qwq-32b", _QWEN_32B),
    (r"qwen2\.5-(coder-)?0\.5b", _dense(0.494, 24, (14, 2, 64), 896, 4864, 151936, tied=True)),
    (r"qwen2\.5-(coder-)?3b", _dense(3.09, 36, (16, 2, 128), 2048, 11008, 151936, tied=True)),
    (r"qwen2(\.5)?-(math-)?72b", _dense(72.71, 80, (64, 8, 128), 8192, 29568, 152064)),
    (r"qwen2\.5-vl-72b", _dense(73.41, 80, (64, 8, 128), 8192, 29568, 152064)),
    (r"qwen1\.5-7b", _dense(7.72, 32, (32, 32, 128), 4096, 11008, 151936)),
    (r"qwen1\.5-32b", _dense(32.51, 64, (40, 8, 128), 5120, 27392, 152064)),
    (r"qwen(1\.5)?-72b", _dense(72.29, 80, (64, 64, 128), 8192, 24576, 152064)),
    (r"qwen3-0\.6b", _dense(0.6, 28, (16, 8, 128), 1024, 3072, 151936, tied=True, block=128)),
    (r"qwen3-1\.7b", _dense(1.72, 28, (16, 8, 128), 2048, 6144, 151936, tied=True, block=128)),
    (r"qwen3-4b", _dense(4.02, 36, (32, 8, 128), 2560, 9728, 151936, tied=True, block=128)),
    (r"r1-0528-qwen3-8b|qwen3-8b", _QWEN3_8B),
    (r"qwen3-14b", _dense(14.77, 40, (40, 8, 128), 5120, 17408, 151936, block=128)),
    (r"qwen3-32b", _dense(32.76, 64, (64, 8, 128), 5120, 25600, 151936, block=128)),
    (r"qwen3-(coder-)?30b-a3b", _dense(30.53, 48, (32, 4, 128), 2048, 768, 151936, experts=128, block=128)),
    (r"qwen3-235b-a22b", _dense(235.1, 94, (64, 4, 128), 4096, 1536, 151936, experts=128, block=128)),
    (r"qwen3-coder-480b-a35b", _dense(480.2, 62, (96, 8, 128), 6144, 2560, 151936, experts=160, block=128)),
    # Three of four layers are linear attention. The family's 27B of versions 3.5, 3.6 and 3.8 is one shape.
    (r"qwen3\.[568]-27b", _dense(27.78, 64, (24, 4, 256), 5120, 17408, 248320, whole=16)),
    (
        r"qwen3-next-80b-a3b",
        _dense(81.3, 48, (16, 2, 256), 2048, 512, 151936, whole=12, experts=512, block=128),
    ),
    (r"mistral-7b", _dense(7.25, 32, (32, 8, 128), 4096, 14336, 32768)),
    (r"mistral-nemo", _dense(12.25, 40, (32, 8, 128), 5120, 14336, 131072)),
    (r"mistral-small-(instruct-2409|22b)", _dense(22.25, 56, (48, 8, 128), 6144, 16384, 32768)),
    (r"mistral-small-(24b|3\.[12]-24b)", _dense(23.57, 40, (32, 8, 128), 5120, 32768, 131072)),
    (r"mistral-large-(instruct-)?24\d\d", _dense(122.6, 88, (96, 8, 128), 12288, 28672, 32768)),
    (r"mixtral-8x7b", _dense(46.7, 32, (32, 8, 128), 4096, 14336, 32000, experts=8)),
    (r"mixtral-8x22b", _dense(140.6, 56, (48, 8, 128), 6144, 16384, 32768, experts=8)),
    (r"gemma-(1\.1-)?2b", _dense(2.51, 18, (8, 1, 256), 2048, 16384, 256000, tied=True)),
    (r"gemma-(1\.1-)?7b", _dense(8.54, 28, (16, 16, 256), 3072, 24576, 256000, tied=True)),
    (r"gemma-2-2b", _dense(2.61, 26, (8, 4, 256), 2304, 9216, 256000, tied=True, whole=13, window=4096)),
    (r"gemma-2-9b", _dense(9.24, 42, (16, 8, 256), 3584, 14336, 256000, tied=True, whole=21, window=4096)),
    (r"gemma-2-27b", _dense(27.23, 46, (32, 16, 128), 4608, 36864, 256000, tied=True, whole=23, window=4096)),
    (r"gemma-3-1b", _dense(1.0, 26, (4, 1, 256), 1152, 6912, 262144, tied=True, whole=4, window=512)),
    (r"gemma-3-4b", _dense(4.3, 34, (8, 4, 256), 2560, 10240, 262208, tied=True, whole=5, window=1024)),
    (r"gemma-3-12b", _dense(12.19, 48, (16, 8, 256), 3840, 15360, 262208, tied=True, whole=8, window=1024)),
    (r"gemma-3-27b", _dense(27.43, 62, (32, 16, 128), 5376, 21504, 262208, tied=True, whole=10, window=1024)),
    (r"phi-4(?!-mini|-multimodal|-reasoning-vision)", _dense(14.66, 40, (40, 10, 128), 5120, 17920, 100352)),
    (
        r"gpt-oss-20b",
        _dense(
            20.91, 24, (64, 8, 64), 2880, 2880, 201088,
            whole=12, window=128, experts=32, kept=0.64e9, native="mxfp4",
        ),
    ),
    (
        r"gpt-oss-120b",
        _dense(
            116.83, 36, (64, 8, 64), 2880, 2880, 201088,
            whole=18, window=128, experts=128, kept=0.96e9, native="mxfp4",
        ),
    ),
    (r"deepseek-(v3|r1)(?!\.2|-distill|-0528-qwen)", _DEEPSEEK_V3),
    (
        r"deepseek-(coder-)?v2-lite",
        _dense(15.71, 27, (16, 16, 128), 2048, 1408, 102400, latent=576, experts=64, expert_layers=26),
    ),
    (
        r"kimi-k2",
        _dense(
            1026.0, 61, (64, 64, 128), 7168, 2048, 163840,
            latent=576, experts=384, expert_layers=60, native="fp8", block=128,
        ),
    ),
    (
        r"glm-4\.[56](?!-air|v|-flash)",
        _dense(357.0, 92, (96, 8, 128), 5120, 1536, 151552, experts=160, expert_layers=89),
    ),
    (
        r"glm-4\.5-air|glm-4\.[56]v(?!-flash)",
        _dense(106.85, 46, (96, 8, 128), 4096, 1408, 151552, experts=128, expert_layers=45),
    ),
)  # fmt: skip


def shape(model: str) -> Shape | None:
    """The shape of a model by its name or path; None where it is not known."""
    return next((known for pattern, known in _NAMED if _is_in(pattern, model)), None)


def _is_in(pattern: str, model: str) -> bool:
    """Whether the pattern stands in the name as a word. Compiled when it is first asked for."""
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", model, re.IGNORECASE) is not None
