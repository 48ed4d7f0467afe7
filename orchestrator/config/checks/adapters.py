"""Whether a pool's adapters can be had: by its engine, under their names, from where they are said to be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.flags import RUNTIME_ADAPTERS, adapters, flag_value, has_flag
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.adapters import MOST_ADAPTERS, OWN_NUMBERS
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown
from policies.held import Adapter, is_ours

_LONGEST_NAME: Final = 128  # characters: a revision stands behind it in the engine's own name
_TAKES: Final[Sequence[Kind]] = ("vllm", "llamacpp", "simulated")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def adapter_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What would keep adapters from being served. `at` ends with the pool's name."""
    row = DIALECTS[pool.engine.kind]
    if pool.adapter_slots is not None and row.capabilities.adapters != "runtime":
        yield (*at, "adapter_slots"), f"{row.title} holds those that it starts with; leave it out"
    if not pool.adapters:
        return
    if pool.engine.kind not in _TAKES:
        able = ", ".join(DIALECTS[kind].title for kind in _TAKES)
        yield (*at, "adapters"), f"are not given to {row.title} here; they are to {able}"
        return
    if row.numbered and pool.engine.task != "generate":
        yield (
            (*at, "adapters"),
            f"cannot be chosen by requests here: {row.title} applies all of them to everything that it "
            f"{pool.engine.task}s; leave them out, or merge one into the model",
        )
    if len(pool.adapters) > MOST_ADAPTERS:
        yield (*at, "adapters"), f"are {len(pool.adapters)}; a pool has {MOST_ADAPTERS} at most"
    if pool.cloud.target_group:
        yield (
            (*at, "adapters"),
            "are routed by the gateway, and a target group sends requests past it; leave target_group out",
        )
    yield from _engine_errors(at, pool)
    for name, source in pool.adapters.items():
        adapter = Adapter(name=name, source=source)
        if why := _name_fault(name, pool) or _source_fault(adapter, pool.engine.kind):
            yield (*at, "adapters", name), why


def _engine_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    if has_flag(pool.engine.args, "--no-enable-lora"):
        yield (*at, "engine", "args"), "--no-enable-lora refuses what adapters need; leave it out"
    if pool.engine.env.get(RUNTIME_ADAPTERS, "True").lower() not in ("1", "true"):
        yield (
            (*at, "engine", "env", RUNTIME_ADAPTERS),
            "keeps adapters from being loaded while the engine runs; leave it out",
        )
    room = flag_value(pool.engine.args, "--max-cpu-loras") or ""
    if pool.adapter_slots is not None and room.isdecimal() and int(room) < pool.adapter_slots:
        yield (
            (*at, "engine", "args"),
            f"--max-cpu-loras keeps {room} in memory, and a node is to hold {pool.adapter_slots}: others "
            "would be read again and again; write at least as many as adapter_slots, or leave it out",
        )
    for name in filter(is_ours, adapters(pool.engine.args)):
        yield (
            (*at, "engine", "args"),
            f"{shown(name)} of --lora-modules is a name as loaded adapters have it, and would be unloaded; "
            "write another one",
        )
    if pool.engine.kind != "llamacpp":
        return
    own = ((("on", kind, "args"), table.args) for kind, table in pool.engine.on.items())
    for key, args in ((("args",), pool.engine.args), *own):
        for flag in OWN_NUMBERS:
            if has_flag(args, flag):
                yield (
                    (*at, "engine", *key),
                    f"{flag} takes the first numbers, by which requests name adapters; write it in adapters",
                )


def _name_fault(name: str, pool: PoolConfig) -> str:
    if not name.isprintable() or " " in name or not 0 < len(name) <= _LONGEST_NAME:
        most = f"1 to {_LONGEST_NAME} printable characters without blanks"
        return f"{shown(name)} cannot be the name of an adapter; write {most}"
    if name == pool.served_name:
        return f"{shown(name)} is the name of the model itself; write another one"
    if name in adapters(pool.engine.args):
        return f"{shown(name)} stands in --lora-modules too; leave it out there"
    return ""


def _source_fault(adapter: Adapter, kind: Kind) -> str:
    source, location = adapter.source, adapter.location
    if not source.isprintable() or " " in source or source.endswith("@") or not location:
        return f"{shown(source)} is no place; write a whole path or a repository, such as /srv/lora/sql@1"
    is_path = location.startswith("/")
    if kind == "llamacpp":
        if not (is_path and location.endswith(".gguf") and location == source):
            return f"{shown(source)} is no file of llama.cpp; write the whole path of a GGUF file"
    elif not is_path and not _REPOSITORY.fullmatch(location):
        return f"{shown(source)} is no place; write a whole path, or OWNER/NAME of a repository"
    elif kind == "vllm" and not is_path and location != source:
        return (
            f"{shown(source)}: vLLM loads the newest revision of a repository and no other; fetch that one "
            "to the nodes and write its folder"
        )
    return ""


def adapter_warnings(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What may make nodes serve different adapters under one name."""
    for name, source in pool.adapters.items():
        if not source.startswith("/"):
            yield (
                (*at, "adapters", name),
                f"{shown(source)} is what its repository holds when a node loads it, and nodes may differ; "
                "write a folder that holds one revision",
            )
