"""Make a 1 MB Llama with random weights, for tests that need a real engine but no real answers.

The model is deterministic: the same options write the same bytes on any machine. Its greedy text varies
and does not loop, and contains split UTF-8 characters, so it is good material for tests of streaming and
of continued streams. It wants to stop at random: ask for `ignore_eos` to get an exact number of tokens.

Runs in the environment that `install.sh` makes: needs torch, safetensors and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|start|>", "<|end|>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

HEAD_SIZE = 32  # the smallest head that vLLM's CPU attention takes
HEADS = 2
HIDDEN = HEADS * HEAD_SIZE
LAYERS = 2
VOCABULARY = 1024
CONTEXT = 2048
WEIGHT_STD = 0.25  # smaller values make greedy text repeat itself
ADAPTER_RANK = 8

# Jinja: every message between markers; the last one stays open when it is to be continued.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|start|>{{ message['role'] }}
{{ message['content'] }}
{%- if not (loop.last and continue_final_message is defined and continue_final_message) -%}
<|end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{% endif -%}"""

# Enough text for the merges of a byte-level BPE, with several scripts so that some tokens end inside a
# character.
SENTENCES = (
    "Spot capacity is cheap until the provider wants it back.",
    "A node that drains takes no new work and finishes what it has.",
    "How many tokens per second does one engine produce under load?",
    "role user assistant system content prompt stream choices finish_reason length stop",
    "for node in pool: if node.ready and not node.draining: serve(node)",
    '{"model": "tiny", "prompt": [3, 1, 4, 1, 5], "max_tokens": 64, "stream": true}',
    "Grüße aus Köln, déjà vu, smørrebrød, Ελλάδα, Україна, 日本語, 한국어, ☀️🌊🚦",
)


def write_json(path: Path, value: object) -> None:
    """Write one JSON file, stable to the byte."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE and fill it up so that every id the model can sample decodes to text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    missing = VOCABULARY - tokenizer.get_vocab_size()
    letters = string.ascii_lowercase
    tokenizer.add_tokens([f" {letters[n // 26 % 26]}{letters[n % 26]}{n}" for n in range(missing)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_config(folder: Path) -> None:
    """Write what transformers and vLLM need to know of the architecture."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID},
    )


def write_weights(folder: Path, seed: int) -> int:
    """Write the weights and return how many numbers they hold."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, std: float = WEIGHT_STD) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    weights = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, std=1.0),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": matrix(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{prefix}.self_attn.{name}.weight"] = matrix(HIDDEN, HIDDEN)
        weights[f"{prefix}.mlp.gate_proj.weight"] = matrix(2 * HIDDEN, HIDDEN)
        weights[f"{prefix}.mlp.up_proj.weight"] = matrix(2 * HIDDEN, HIDDEN)
        weights[f"{prefix}.mlp.down_proj.weight"] = matrix(HIDDEN, 2 * HIDDEN)
        weights[f"{prefix}.input_layernorm.weight"] = torch.ones(HIDDEN)
        weights[f"{prefix}.post_attention_layernorm.weight"] = torch.ones(HIDDEN)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in weights.values())


def write_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write a LoRA adapter on the attention of the model."""
    generator = torch.Generator().manual_seed(seed)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj")
    tensors = {}
    for layer in range(LAYERS):
        for module in modules:
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            down = torch.randn(ADAPTER_RANK, HIDDEN, generator=generator) * WEIGHT_STD
            up = torch.randn(HIDDEN, ADAPTER_RANK, generator=generator) * WEIGHT_STD
            tensors[f"{prefix}.lora_A.weight"] = down
            tensors[f"{prefix}.lora_B.weight"] = up
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": ADAPTER_RANK,
        "lora_alpha": 2 * ADAPTER_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(modules),
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)


def main() -> None:
    """Write the model; the weights last, so that their presence means the folder is complete."""
    parser = argparse.ArgumentParser(description="Make a 1 MB Llama with random weights.")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another model (default 0)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="also write FOLDER-NAME, a LoRA adapter",
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_config(folder)
    for serial, name in enumerate(arguments.adapter, start=arguments.seed + 1):
        write_adapter(folder.with_name(f"{folder.name}-{name}"), folder, serial)
    count = write_weights(folder, arguments.seed)
    print(f"{folder}: {count} parameters")


if __name__ == "__main__":
    main()
