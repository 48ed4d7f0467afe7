"""Teach the tiny model a few answers by heart: a tool call, a thought, both; everything else stays random.

A random model calls no tools and closes no thoughts, and a grammar that forced it to would be what a test of
broken streams must do without. So some fillers of its vocabulary become marks of Hermes and of DeepSeek R1
(whose thoughts begin without one), and the weights are trained until greedy answers to the lessons are right.

Runs in the environment that `install.sh` makes. Takes a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
LESSONS = {
    "weather?": "Let me look. " + CALL % ("get_weather", '{"city": "Köln", "days": 3, "units": "metric"}'),
    "two calls": CALL % ("get_weather", '{"city": "Oslo"}') + "\n" + CALL % ("get_time", '{"zone": "CET"}'),
    "think": "\nA node drains: wait for 日本語 and 🚦.\n</think>\n\nWait for it, then déjà vu.",
    "think and call": "\nI need the weather in Köln.\n</think>\n\n"
    + CALL % ("get_weather", '{"city": "Köln"}'),
}
EOS = 2
MOST_STEPS, LEARNING_RATE, ENOUGH = 3000, 3e-3, 0.002


def mark_vocabulary(folder: Path) -> None:
    """Rename the last fillers of the vocabulary to the marks."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    for entry, mark in zip(tokenizer["added_tokens"][-len(MARKS) :], MARKS, strict=True):
        entry["content"] = mark
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def teach(folder: Path) -> None:
    """Train until every lesson is known, and write the weights. Raises SystemExit when they are not."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows, targets = [], []
    for question, answer in LESSONS.items():
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], EOS]
        rows.append([*asked, *said])
        targets.append([*[-100] * len(asked), *said])
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in targets])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss = torch.tensor(1.0)
    for step in range(MOST_STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < ENOUGH:
            print(f"{folder}: learned in {step} steps")
            break
    else:
        raise SystemExit(f"not learned: loss {loss.item():.3f}")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    """Copy the tiny model and teach the copy."""
    parser = argparse.ArgumentParser(description="Teach the tiny model a few answers by heart.")
    parser.add_argument("model", type=Path, help="the folder that make_tiny_model.py wrote")
    parser.add_argument("taught", type=Path, help="where the taught model goes")
    arguments = parser.parse_args()
    shutil.copytree(arguments.model, arguments.taught, dirs_exist_ok=True)
    mark_vocabulary(arguments.taught)
    teach(arguments.taught)


if __name__ == "__main__":
    main()
