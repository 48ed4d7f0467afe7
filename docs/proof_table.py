"""How every cloud, balancer and engine is proved, from their tables: a part of docs/generate.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cloud.balancers.proof import BALANCERS
from cloud.engines.dialect import DIALECTS
from cloud.kinds import KINDS
from cloud.ports import ProviderTraits
from cloud.proof import MEANING, Proof, Proved
from orchestrator.units import format_duration

_HEAD: Final = """# What is proved, and by what

<!-- Made by docs/generate.py from the tables of clouds, balancers and engines. Do not edit. -->

Nobody can run every cloud, balancer and engine there is. So each one says what it was run against, here and
in `orchestrator doctor` (check `pool/proof`). From the strongest to the weakest:

"""

_CONSENT: Final = """
A cloud or a balancer that is proved by *source* only needs `accept_unproven = true` in the pool: without it
`orchestrator validate` refuses the file and says why. Of an engine that was only read about, `validate`
warns; `orchestrator doctor --engine URL --kind vllm` asks a running one and says what differs.
"""

_FIELD: Final = """
A field test, such as `orchestrator doctor --field-test gcp`, runs one node on an account and writes
[a report to send in](../how-to/field-test.md). A cloud is proved by *field* once a report from the cloud
itself says so: launch, replay, list, end and the replay after the end were well, and nothing failed. Its
region, type and versions then stand in the column *by*. Steps that such a report skipped, as a preemption
that nobody was allowed to ask for, stay proved as they were. A report from a stand-in lifts nothing.

"""

_TRAITS: Final = """
What a provider cannot do is refused by `orchestrator validate` with the reason: a stopped standby where
machines cannot be stopped, an adaptive mix that counts on a longer notice than there is, lists that are read
every few seconds where each costs a call for every machine.
"""


def page() -> str:
    """The whole page."""
    levels = "".join(f"* **{level}**: {MEANING[level]}.\n" for level in Proof)
    clouds = [
        (f"`{name}`", row.title, *_proved(row.proved), *_traits(row.traits)) for name, row in KINDS.items()
    ]
    balancers = [(f"`{name}`", *_proved(proved)) for name, proved in BALANCERS.items()]
    engines = [(f"`{kind}`", *_proved(row.proved)) for kind, row in DIALECTS.items()]
    return "".join(
        (
            _HEAD,
            levels,
            _CONSENT,
            "\n## Clouds\n\n",
            _table(("cloud.kind", "", "proof", "by", "stops", "notice", "list"), clouds),
            _TRAITS,
            _FIELD,
            _table(("cloud.kind", "a preemption is asked for by", "which needs"), _preemptions()),
            "\n## Balancers\n\n",
            _table(("balancer", "proof", "by"), balancers),
            "\n## Engines\n\n",
            _table(("engine.kind", "proof", "by"), engines),
        )
    )


def _preemptions() -> Iterable[tuple[str, str, str]]:
    for name, row in KINDS.items():
        if row.here:
            continue
        if row.preemption is None:
            yield f"`{name}`", "nothing", "-"
        else:
            yield f"`{name}`", row.preemption.by, row.preemption.right


def _proved(one: Proved) -> tuple[str, str]:
    return str(one.proof), one.by


def _traits(one: ProviderTraits) -> tuple[str, str, str]:
    return (
        "yes" if one.stops else "no",
        format_duration(one.notice) if one.notice else "none",
        "one call a region" if one.lists_at_once else "one call a machine",
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
