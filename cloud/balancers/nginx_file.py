"""The file that nginx includes: the upstream of a pool, and a word that says which set a running nginx has.

    # Written by spot-orchestrator, generation 1099511627779
    map "" $orchestrator_chat { default "1099511627779.5d41402abc"; }
    upstream chat {
        zone chat 256k;
        least_conn;
        server 10.0.0.5:8000 weight=1 max_fails=2 fail_timeout=2s; # target i-1 100
        # draining i-2 10.0.0.6:8000 100
        keepalive 256;
    }

The second half of the word is a digest of the targets, so a file that was torn or changed by hand is noticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.durable import write_atomic
from cloud.errors import Denied
from cloud.ports import digest
from policies.model import TargetPhase, TargetSpec

_WORD: Final = re.compile(r'^map "" \$orchestrator_\w+ \{ default "((\d+)\.\w+)"; \}$', re.MULTILINE)
_TARGET: Final = re.compile(r"^    server (\S+) weight=\d+ [^#\n]*# target (\S+) (\d+)$", re.MULTILINE)
_DRAINING: Final = re.compile(r"^    # draining (\S+) (\S+) (\d+)$", re.MULTILINE)
_PLAIN: Final = re.compile(r"[^\s;{}#\"'\\]+")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A set of targets as a file has it; `word` is what a running nginx says of it."""

    generation: int
    targets: tuple[TargetSpec, ...]

    @property
    def word(self) -> str:
        """The generation, and a digest of the targets."""
        if not self.generation:
            return "0.0"
        rows = (f"{t.id} {t.address} {t.phase} {t.weight}" for t in self.targets)
        return f"{self.generation}.{digest(*rows)[:12]}"


EMPTY: Final = Upstream(0, ())


def upstream(specs: Sequence[TargetSpec], generation: int) -> Upstream:
    """The same targets as a file can hold them. Raises Denied for what cannot stand in a configuration."""
    for spec in specs:
        if not _PLAIN.fullmatch(spec.id) or not _PLAIN.fullmatch(spec.address):
            raise Denied(f"target {spec.id!r} at {spec.address!r} cannot stand in a configuration of nginx")
    kept = (
        TargetSpec(
            id=s.id, address=s.address, phase=s.phase if s.weight else TargetPhase.DRAINING, weight=s.weight
        )
        for s in specs
    )
    return Upstream(generation, tuple(sorted(kept, key=lambda spec: spec.id)))


def text_of(name: str, held: Upstream) -> str:
    """The file."""
    active = [t for t in held.targets if t.phase is TargetPhase.ACTIVE]
    share = math.gcd(*(t.weight for t in active)) if active else 1
    rules = "max_fails=2 fail_timeout=2s"
    lines = [
        f"    server {t.address} weight={t.weight // share} {rules}; # target {t.id} {t.weight}"
        for t in active
    ]
    lines += [
        f"    # draining {t.id} {t.address} {t.weight}"
        for t in held.targets
        if t.phase is not TargetPhase.ACTIVE
    ]
    if not active:
        lines.append("    server 127.0.0.1:9 down; # nginx takes no upstream without a server")
    return "\n".join(
        (
            f"# Written by spot-orchestrator, generation {held.generation}",
            f'map "" $orchestrator_{variable(name)} {{ default "{held.word}"; }}',
            f"upstream {name} {{",
            f"    zone {name} 256k;",
            "    least_conn;",
            *lines,
            "    keepalive 256;",
            "}",
            "",
        )
    )


def variable(name: str) -> str:
    """What of an upstream's name a variable of nginx may have in its own."""
    return re.sub(r"\W", "_", name)


def read(path: Path) -> Upstream:
    """The set in a file; none for one that is not there, torn, or changed by hand. Blocks on the disk."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return EMPTY
    word = _WORD.search(text)
    if word is None:
        return EMPTY
    rows = [(node, address, TargetPhase.ACTIVE, weight) for address, node, weight in _TARGET.findall(text)]
    rows += [
        (node, address, TargetPhase.DRAINING, weight) for node, address, weight in _DRAINING.findall(text)
    ]
    try:
        specs = [TargetSpec(id=n, address=a, phase=phase, weight=int(w)) for n, a, phase, w in rows]
        held = Upstream(int(word[2]), tuple(sorted(specs, key=lambda spec: spec.id)))
    except ValueError:  # numbers that are none
        return EMPTY
    return held if held.word == word[1] else EMPTY


def write(path: Path, name: str, held: Upstream) -> None:
    """Replace the file. Blocks on the disk. Raises OSError."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644  # nginx may have another user
    write_atomic(path, text_of(name, held).encode(), mode=mode)
