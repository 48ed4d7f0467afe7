"""The traffic of `orchestrator cost --usage`: what it costs at APIs, and what it would on machines."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, Connection, Texts
from orchestrator.units import parse_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.config.load import Config
    from orchestrator.costs.exports import Export
    from orchestrator.costs.settings import CostSettings
    from policies.estimate import Machine
    from policies.spend import Price

_LARGEST: Final = 64 * 2**20
"""Bytes of an export that is read: some hundred thousand lines, which take ten times as much of memory."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The sum before anything runs: a traffic at APIs and on machines."""

    usage: Annotated[
        str | None,
        Parameter(
            help="Weigh a traffic instead: a usage export of OpenAI or Anthropic (CSV or JSON), or a pace "
            'such as "50M/day".'
        ),
    ] = None
    ratio: Annotated[
        str, Parameter(help="Tokens of prompts to tokens of answers, of a pace; 1:0 for embeddings.")
    ] = "3:1"
    cached: Annotated[str, Parameter(help="Share of the prompts' tokens out of a cache, of a pace.")] = "0%"
    peak: Annotated[
        float | None,
        Parameter(
            help="Tokens of the busiest hour over those of the mean one; else what the export shows, or 1.",
            validator=validators.Number(gte=1),
        ),
    ] = None
    api: Annotated[
        Texts,
        Parameter(
            help="Also what this API asks, as PROVIDER/MODEL. Else those of the configuration's routes."
        ),
    ] = ()
    machine: Annotated[
        Texts,
        Parameter(
            help="A machine, as NAME=USD_PER_HOUR/TOKENS_PER_SECOND; without the rate the answer is the rate "
            "it would need. The configuration's pools are compared too."
        ),
    ] = ()
    people: Annotated[
        str | None, Parameter(help="Share of people's work on --machine; else cost.people.")
    ] = None


def weigh(usage: str, before: Before, connection: Connection, output: str) -> int:
    """Show what the traffic costs at APIs and would on machines. Raises CommandError."""
    from orchestrator.costs import estimate

    if output == "csv":
        raise CommandError("-o csv: a traffic is shown as a table or as json", shared.USAGE)
    config = None if connection.config is None else shared.read_config(connection.config, "client")
    export = _export(usage)
    if export is not None:
        asked = estimate.of_export(export)
    else:
        try:
            share = _share("--cached", before.cached)
            asked = estimate.of_pace(usage, ratio=_ratio(before.ratio), cached=share)
        except ValueError as error:
            raise CommandError(f"--usage: {error}", shared.USAGE) from error
    known = None if config is None else _settings(config).doing(asked.task)
    apis = list(before.api) or ([] if export is not None or known is None else known.apis)
    view = estimate.view_of(
        source=usage,
        asked=asked if before.peak is None else replace(asked, peak=before.peak),
        export=export,
        apis=apis,
        prices=_prices(config, export, apis),
        machines=_machines(known, before),
    )
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import cost as render

    shared.print_text(render.estimate(view, shared.look(output)))
    return shared.OK


def _export(usage: str) -> Export | None:
    """The file of that name; None where there is none. Raises CommandError."""
    from orchestrator.costs.exports import Unreadable, read_export

    file = Path(usage)
    try:
        if not file.is_file():
            return None
        if file.stat().st_size > _LARGEST:
            raise Unreadable(f"it is larger than {_LARGEST >> 20} MiB; export fewer days, or by the day")
        return read_export(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{usage}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{usage}: it is no text in UTF-8; save it as such", prefix="") from error
    except Unreadable as error:
        raise CommandError(f"{usage}: no usage export of OpenAI or Anthropic: {error}", prefix="") from error


def _settings(config: Config) -> CostSettings:
    from cloud.clock import SystemClock
    from orchestrator.costs.settings import settings_of

    return settings_of(config, now=SystemClock().now())


def _prices(config: Config | None, export: Export | None, apis: Sequence[str]) -> Mapping[str, Price | None]:
    """What each API asks now: by the configuration's own prices, else by the price list."""
    from cloud.clock import SystemClock
    from orchestrator.costs.estimate import used_models
    from orchestrator.costs.settings import api_price

    now, providers = SystemClock().now(), {} if config is None else config.providers
    names = {*apis, *(used_models(export) if export is not None else ())}
    found = {name: api_price(providers, name, now=now) for name in sorted(names)}
    if None in found.values() and not _has_list():
        print(
            "prices of APIs come from the file, or from the extra `providers` "
            "(pip install 'spot-orchestrator[providers]'), which is not installed",
            file=sys.stderr,
        )
    return found


def _has_list() -> bool:
    from importlib.util import find_spec

    return find_spec("genai_prices") is not None


def _machines(known: CostSettings | None, before: Before) -> list[Machine]:
    """What is given, then the pools of the configuration that do the same."""
    from orchestrator.config.tables.cost import CostConfig
    from policies.estimate import Machine

    usual = CostConfig().people if known is None else known.people
    people = usual if before.people is None else _share("--people", before.people)
    pools = () if known is None else known.pools
    return [_machine(text, people) for text in before.machine] + [
        Machine(name=f"pool {pool.name}", price=pool.price, rate=pool.rate, people=pool.people)
        for pool in pools
    ]


def _machine(text: str, people: float) -> Machine:
    from policies.estimate import Machine

    name, _, figures = text.partition("=")
    price, _, rate = figures.partition("/")
    try:
        found = Machine(
            name=name.strip(),
            price=float(price.strip().removeprefix("$")),
            rate=float(rate) if rate.strip() else None,
            people=people,
        )
        if not (
            found.name
            and 0 < (found.price or 0) < math.inf
            and (found.rate is None or 0 < found.rate < math.inf)
        ):
            raise ValueError
    except ValueError:
        raise CommandError(
            f'--machine {text}: write NAME=USD_PER_HOUR/TOKENS_PER_SECOND, such as "h100=3.00/500"',
            shared.USAGE,
        ) from None
    return found


def _ratio(text: str) -> float:
    """Tokens of prompts for one of answers; infinite where there are no answers."""
    prompt, _, answer = text.partition(":")
    try:
        parts = float(prompt), float(answer or "1")
        if min(parts) < 0 or not parts[0] or math.isinf(max(parts)) or math.isnan(sum(parts)):
            raise ValueError
    except ValueError:
        raise CommandError(f"--ratio {text}: write prompts:answers, such as 3:1", shared.USAGE) from None
    return parts[0] / parts[1] if parts[1] else math.inf


def _share(flag: str, text: str) -> float:
    try:
        share = parse_share(text)
        if not 0 <= share <= 1:
            raise ValueError(f"{text} is no share between 0% and 100%")
    except ValueError as error:
        raise CommandError(f"{flag}: {error}", shared.USAGE) from error
    return share
