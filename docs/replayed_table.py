"""The page of the engines that are played: what was read, and what would break if it were wrong."""

from __future__ import annotations

from typing import Final

from cloud.engines.dialect import DIALECTS
from cloud.engines.replay.fidelity import ORIGINS

_HEAD: Final = """# Engines that were not run

<!-- Made by docs/generate.py from cloud/engines/dialect.py and replay/fidelity.py. Do not edit. -->

vLLM and llama.cpp are run for real by the tests. These engines are not: what is known of them was read in
their sources, and a server plays it (`python -m cloud.engines.replay KIND -- [the engine's own flags]`). The
contract suite of engines holds all of them to their rows. `validate` and `doctor` say of a pool of such an
engine that it *was not run against the real one*.

A real one shows what differs, in a minute and with a handful of tokens:

```sh
orchestrator doctor --engine http://10.0.0.7:30000 --kind sglang
orchestrator doctor --engine http://10.0.0.8:8080 --kind tei --task embed -o json
```

It ends with exit code 1 where something differs, and says what.

## What they can do

| engine | tasks | ids of tokens | adapters | drains | refuses unknown names | run |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = []
    for kind, row in DIALECTS.items():
        can = row.capabilities
        words = (
            f"`{kind}`",
            ", ".join(sorted(can.tasks)),
            can.token_ids,
            can.adapters,
            _yes(can.drains),
            _yes(can.checks_names),
            _yes(can.ran),
        )
        rows.append(f"| {' | '.join(words)} |")
    parts = [_HEAD + "\n".join(rows) + "\n"]
    for kind, origin in ORIGINS.items():
        notes = "\n".join(f"| {note.shape} | `{note.where}` | {note.if_wrong} |" for note in origin.notes)
        title = f"## {DIALECTS[kind].title}\n\nRead: {origin.version}, {origin.date}.\n"
        parts.append(
            f"{title}\n| what is played | where it says so | if it were wrong |\n|---|---|---|\n{notes}\n"
        )
    return "\n".join(parts)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
