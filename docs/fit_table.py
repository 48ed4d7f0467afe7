"""The page of published facts about models that fit or do not: docs/reference/fit.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

sys.path.insert(
    0, str(Path(__file__).parent.parent)
)  # the tests are modules of the repository, not installed

from tests.orchestrator.config.published import Fact, facts

_HEAD: Final = """# Whether a model fits

<!-- Made by docs/generate.py from tests/orchestrator/config/published_fits.toml. Do not edit. -->

`orchestrator validate` and `orchestrator doctor` say before any money is spent whether vLLM could start on
each instance type of a pool, and what to change when it could not. Needed on the fullest GPU, as a share of
`--gpu-memory-utilization` of its memory:

* **Weights**: parameters x bytes of their form (FP8 1, AWQ and GPTQ 0.52, MXFP4 0.53; 4 with `--dtype
  float32`); embeddings stay in 16 bits. A name that says BF16 overrides the form of its publisher's
  weights. `--cpu-offload-gb` takes as much off each GPU, and has to fit into the machine's own memory. What
  is tensor parallel is divided, of a pipeline the longest stage counts, and experts are divided over copies
  (`--data-parallel-size`), too.
* **Cache**: that of one request of `--max-model-len` tokens, or of the model's own maximum: layers x
  key-value heads x head size x 2 values. Layers with a window hold that, linear attention nothing that
  grows; latent attention (DeepSeek) is whole on each GPU. `--kv-cache-dtype fp8` halves it.
* **Adapters**, with `--enable-lora`: `--max-loras` places of `--max-lora-rank` each, which vLLM takes
  whether an adapter is loaded or not.
* **A model that drafts** (`--speculative-config` with a `model` of known size): its weights and its cache.
* **The rest**: 2.0 GiB for activations, CUDA and its graphs; 1.4 with `--enforce-eager`.

The shapes of known models stand in `policies/model_shapes.py`; where a name says only a size, cache and
adapters are estimated from that, and what such a cache decides is a warning: with linear attention it is a
fraction. Of a model of which neither is known, it says that the fit is unknown. Whatever the
memory, an engine ends at once where the attention heads cannot be divided by `--tensor-parallel-size`,
where FP8 experts with block scales cannot, and where the GPU does not read the form of the weights:

| form | read from compute capability | computed in from |
|---|---|---|
| FP8 | 7.5 (T4: weight-only) | 8.9 (L4, L40S, H100) |
| AWQ | 7.5 (not V100) | weight-only |
| GPTQ | 7.0 | weight-only |
| INT8 (W8A8) | 7.5, and below 10.0 (not B200) | 7.5 |
| MXFP4 | 8.0 | 8.0, weight-only before 10.0 |

Of SGLang, TGI and TensorRT-LLM the weights alone are held against all GPUs of a machine, and that nothing
else was judged is said. Several engines on one machine are those of the [local cloud](local-cloud.md): what
all its pools take of a GPU (`--gpu-memory-utilization`, for each node of `replicas` and `standby.hot`) must
not be more than there is, and leaves room for one engine more or a warning.

An estimate within 10 % of the limit is called a *close fit* and is a warning; beyond that it is an error.

## Against what others have published

{count} facts from vLLM's issues, recipes and blog, from model cards and vendors. {right} of {count} verdicts
agree; the other {tight} are close fits, which the check says itself. Left out: reports of vLLM before 0.5
that ran out of memory while it captured graphs or loaded experts although the numbers left room, and that its
later versions do not repeat (vllm-project/vllm#2348, #2382, and #2856 with 8 GPUs where 4 sufficed).

| model | flags | GPUs | published | the check says | decided by | source |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    all_of_them = facts()
    right = sum(fact.verdict.fits == fact.fits for fact in all_of_them)
    head = _HEAD.format(count=len(all_of_them), right=right, tight=len(all_of_them) - right)
    return head + "".join(map(_row, all_of_them))


def _row(fact: Fact) -> str:
    verdict, word = fact.verdict, {True: "fits", False: "does not fit"}
    used = "cannot start" if verdict.used == float("inf") else f"{verdict.used:.0%}"
    says = f"{word[verdict.fits]}, {used}" + (", close" if verdict.tight else "")
    if verdict.fits != fact.fits:
        says = f"**{says}**"
    flags = f"`{' '.join(fact.args)}`" if fact.args else ""
    when = f"{fact.on}" if fact.dated else f"read {fact.on}"
    gpus = f"{fact.gpus.count} x {fact.gpus.kind} ({fact.gpus.memory:.0f} GiB)"
    source = f"[{urlsplit(fact.source).netloc}]({fact.source}), {when}: {fact.says}"
    row = [f"`{fact.model}`", flags, gpus, word[fact.fits], says, fact.decides, source]
    return f"| {' | '.join(row)} |\n"
