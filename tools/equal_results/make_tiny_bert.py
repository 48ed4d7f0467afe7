"""Make a BERT encoder with random weights, for the embeddings of a real engine: under 1 MB, the same bytes
on every run.

    python make_tiny_bert.py TINY_MODEL OUT

Takes the tokenizer of the tiny Llama that `tools/vllm/make_tiny_model.py` makes. Runs in vLLM's environment:
needs torch and safetensors.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, VOCABULARY, POSITIONS = 64, 2, 1024, 512
SEED = 0
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 2 * HIDDEN,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "torch_dtype": "float32",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "position_embedding_type": "absolute",
}
LINEARS = {
    "attention.self.query": (HIDDEN, HIDDEN),
    "attention.self.key": (HIDDEN, HIDDEN),
    "attention.self.value": (HIDDEN, HIDDEN),
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (2 * HIDDEN, HIDDEN),
    "output.dense": (HIDDEN, 2 * HIDDEN),
}
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def weights() -> dict[str, torch.Tensor]:
    """Random matrices, biases of zero, norms of one."""
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 0.1
        found[f"{name}.bias"] = torch.zeros(rows)

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = torch.ones(HIDDEN), torch.zeros(HIDDEN)

    for name, rows in (("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = torch.randn(rows, HIDDEN, generator=generator) * 0.1
    norm("embeddings.LayerNorm")
    linear("pooler.dense", HIDDEN, HIDDEN)
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            linear(f"encoder.layer.{layer}.{name}", rows, columns)
        for name in NORMS:
            norm(f"encoder.layer.{layer}.{name}")
    return found


def main(source: Path, out: Path) -> None:
    """Write the model's folder, with mean pooling over tokens as sentence-transformers names it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
    shutil.copy(source / "tokenizer.json", out)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.pop("chat_template", None)
    tokenizer["model_max_length"] = POSITIONS
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(kinds)
    ]
    (out / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    (out / "1_Pooling").mkdir(exist_ok=True)
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    save_file(weights(), str(out / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
