"""`orchestrator trace`: spot markets on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, Duration, PlainOutput

if TYPE_CHECKING:
    from cloud.local.spotset import SpotSet

_Above0 = validators.Number(gt=0)
Directory = Annotated[
    Path, Parameter(name=["--output", "-o"], help="The directory of the set; must be empty or not there yet.")
]
Force = Annotated[bool, Parameter(negative="", help="Replace the set that is there.")]
Price = Annotated[float | None, Parameter(metavar="USD", validator=_Above0)]
Count = Annotated[int, Parameter(converter=shared.whole, validator=validators.Number(gte=1, lte=100_000))]


def show(
    directory: Annotated[Path, Parameter(help="A set, or a directory of sets.")],
    /,
    *,
    output: PlainOutput = "table",
) -> int:
    """Say what is in a recorded or synthetic market: zones, capacity, prices, losses.

    For example:
      orchestrator trace show traces/v100-2023
      orchestrator trace show traces -o json | jq '.sets[].name'
    """
    from orchestrator.backtest import markets

    try:
        views = [markets.description(found) for _, found in markets.read_sets(directory)]
    except markets.MarketError as error:
        raise CommandError(str(error), prefix="") from error
    if output == "json":
        shared.print_json({"schema": "trace/1", "sets": views})
        return shared.OK
    from orchestrator.backtest import tables

    shared.print_text(tables.sets(views, shared.look(output)))
    return shared.OK


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaid:
    """What a recording does not say, and what to take of it."""

    on_demand_price: Annotated[
        Price, Parameter(help="On-demand price of a node, USD per hour, where the recording has none.")
    ] = None
    spot_price: Annotated[
        Price, Parameter(help="skypilot: spot price, USD per hour; else 30% of the on-demand price.")
    ] = None
    nodes: Annotated[
        Count | None,
        Parameter(
            help="skypilot: how many nodes a recorded 1 stands for (1). aws-price-history: how many nodes "
            "can be had in a zone (16)."
        ),
    ] = None
    capacity: Annotated[
        Literal["price", "synthetic"],
        Parameter(
            help="aws-price-history has no capacity. price: there is capacity while the price is at most "
            "--max-price. synthetic: real prices with the losses of the synthetic market."
        ),
    ] = "price"
    max_price: Annotated[
        Price, Parameter(help="aws-price-history: no capacity above this price; else the on-demand price.")
    ] = None
    gap: Annotated[
        Duration,
        Parameter(
            help="aws-price-history: length of a tick.", validator=_Above0, show_default=lambda _: "300s"
        ),
    ] = 300.0
    instance: Annotated[str | None, Parameter(help="aws-price-history: the instance type to take.")] = None
    product: Annotated[
        str | None, Parameter(help="aws-price-history: the product to take, such as Linux/UNIX.")
    ] = None
    seed: Annotated[int, Parameter(help="With --capacity synthetic: which market.")] = 1


def convert(
    files: Annotated[
        tuple[Path, ...], Parameter(name="files", help="The recording: a file per zone, or price histories.")
    ],
    /,
    *,
    output: Directory,
    source: Annotated[
        Literal["skypilot", "aws-price-history"], Parameter(name="--from", help="The format of the files.")
    ],
    unsaid: Unsaid = Unsaid(),
    name: Annotated[str | None, Parameter(help="Name of the set; else that of the directory.")] = None,
    force: Force = False,
) -> int:
    """Convert a public recording of a spot market into a set that `simulate` and `demo` play.

    For example:
      orchestrator trace convert spot-traces/preemption/4-node/*/*.json \\
        --from skypilot --on-demand-price 3.06 -o traces/v100-4n
      aws ec2 describe-spot-price-history --instance-types p5.48xlarge \\
        --product-descriptions Linux/UNIX > prices.json
      orchestrator trace convert prices.json --from aws-price-history \\
        --on-demand-price 55.04 -o traces/p5

    A price history says what a node cost, not whether one could be had: it shows money, not preemptions.
    What was assumed is written into the notes of set.json.
    """
    from cloud.local.recordings import Assumed, from_price_history, from_skypilot
    from cloud.local.spotset import SpotsetError

    assumed = Assumed(name=name or output.resolve().name, **asdict(unsaid))
    try:
        made = (from_skypilot if source == "skypilot" else from_price_history)(files, assumed)
    except SpotsetError as error:
        raise CommandError(str(error), prefix="") from error
    return _save(made, output, force=force)


def synthesise(
    *,
    output: Directory,
    seed: Annotated[int, Parameter(help="Which market; one seed is one market, on any machine.")] = 1,
    days: Annotated[float, Parameter(help="How long it lasts.", validator=_Above0)] = 14.0,
    regions: Annotated[Count, Parameter(help="How many regions.")] = 2,
    zones: Annotated[Count, Parameter(help="How many zones each region has.")] = 3,
    nodes: Annotated[Count, Parameter(help="The most nodes that a zone has.")] = 16,
    on_demand_price: Annotated[
        float, Parameter(help="On-demand price, USD per hour.", metavar="USD", validator=_Above0)
    ] = 3.06,
    name: Annotated[str | None, Parameter(help="Name of the set; else synthetic-SEED.")] = None,
    force: Force = False,
) -> int:
    """Make a synthetic market whose statistics are like those of recorded ones.

    For example:
      orchestrator trace synthesise -o traces/synthetic-7 --seed 7 --days 30
    """
    from dataclasses import replace

    from pydantic import TypeAdapter, ValidationError

    from cloud.local.synthetic import SyntheticParameters
    from cloud.local.synthetic import synthesise as make

    wanted = {
        "regions": regions,
        "zones_per_region": zones,
        "days": days,
        "most": nodes,
        "on_demand_price": on_demand_price,
    }
    try:
        parameters = TypeAdapter(SyntheticParameters).validate_python(wanted)
    except ValidationError as error:
        fault = error.errors()[0]
        raise CommandError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", shared.USAGE) from error
    made = make(parameters, seed)
    return _save(replace(made, name=name or made.name), output, force=force)


def _save(made: SpotSet, directory: Path, *, force: bool) -> int:
    from cloud.local.spotset import SpotsetError, save_spotset
    from orchestrator.backtest import markets, tables

    try:
        save_spotset(made, directory, replace=force)
    except SpotsetError as error:
        raise CommandError(str(error), prefix="") from error
    shared.print_text(tables.sets([markets.description(made)], shared.look("table")))
    print(f"Wrote {directory}")
    print(f"Next: orchestrator simulate --config pool.toml --trace {directory}")
    return shared.OK
