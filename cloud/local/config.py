"""What a local cloud is made of: zones, prices, delays, notices, faults' shares, where its state lives.

Delays and notices are market seconds: `speed` market seconds pass in one real second, so speed 60 with a
notice of 120 gives two real seconds. An engine's `stop_grace` and everything in `limits` are real seconds,
since engines and files do not run faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, TypeAdapter
from pydantic import ValidationError as PydanticError

from cloud.local.market import SpotMarket, constant, from_spotset, liveliest_start
from cloud.local.spotset import SpotSet, SpotsetError, read_spotset
from cloud.local.synthetic import SyntheticParameters, synthesise

PROVIDER = "local"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Port = Annotated[int, Field(ge=1, le=65535)]
_LONGEST_SOCKET_PATH = 107  # bytes; the kernel's sun_path holds 108 with the closing zero


class SetupError(Exception):
    """The local cloud cannot start as configured: what, where, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneConfig:
    """One zone of a constant market. Prices in USD per node-hour."""

    zone: str
    capacity: NonNegativeInt = 16
    spot_price: PositiveFloat = 0.9
    on_demand_price: PositiveFloat = 3.0

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSource:
    """A market that never changes by itself; reclaims come from the admin API only."""

    source: Literal["constant"] = "constant"
    zones: tuple[ZoneConfig, ...] = (
        ZoneConfig(zone="local-1a"),
        ZoneConfig(zone="local-1b"),
        ZoneConfig(zone="local-1c"),
    )
    region: str = "local-1"

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A recorded market in `spotset/1` format, repeated when it ends.

    `zones` picks some; empty takes all. `start` is the place to begin, in market seconds, or "liveliest":
    the window of `span` market seconds with the most reclaims for somebody who holds `held` nodes a zone.
    """

    source: Literal["trace"] = "trace"
    directory: Path
    zones: tuple[str, ...] = ()
    start: NonNegativeFloat | Literal["liveliest"] = 0.0
    span: PositiveFloat = 6 * 3600.0
    held: Annotated[int, Field(ge=1)] = 3

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSource:
    """A market made up from `parameters` and `seed`; the cloud's own seed when None. Else as TraceSource."""

    source: Literal["synthetic"] = "synthetic"
    parameters: SyntheticParameters = field(default_factory=SyntheticParameters)
    seed: int | None = None
    start: NonNegativeFloat | Literal["liveliest"] = 0.0
    span: PositiveFloat = 6 * 3600.0
    held: Annotated[int, Field(ge=1)] = 3

    __pydantic_config__ = ConfigDict(extra="forbid")


Source = Annotated[ConstantSource | TraceSource | SyntheticSource, Field(discriminator="source")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """A machine type. The market's prices and capacities are for factor 1.0."""

    name: str = "local.gpu"
    price_factor: PositiveFloat = 1.0
    capacity_factor: PositiveFloat = 1.0

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaiming:
    """How spot nodes are taken away. Times in market seconds.

    `late_share` of the reclaims show their notice only `late_notice` before the deadline, `missing_share`
    show none at all. `rebalance_lead` above 0 recommends rebalancing that long before the notice.
    """

    notice: NonNegativeFloat = 120.0
    late_share: Share = 0.0
    late_notice: NonNegativeFloat = 20.0
    missing_share: Share = 0.0
    rebalance_lead: NonNegativeFloat = 0.0

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Where a notice shows, and how long after it was given. Delays in market seconds."""

    feed: bool = True
    metadata: bool = True
    feed_delay: NonNegativeFloat = 0.0
    metadata_delay: NonNegativeFloat = 0.0
    state_changes: bool = True  # the feed also reports machines that vanished

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How much the cloud remembers. Real seconds, counts, bytes."""

    ended_listed: PositiveFloat = 300.0  # how long a terminated instance stays in lists
    ended_remembered: Annotated[int, Field(ge=1)] = 2000  # terminated instances whose token is still known
    ended_logs: NonNegativeInt = 50  # terminated instances whose log files stay
    log_bytes: Annotated[int, Field(ge=4096)] = (
        262_144  # of the newest engine output; as much again before it
    )
    notices: Annotated[int, Field(ge=1)] = 10_000  # notices that nobody acknowledged

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCloudConfig:
    """Everything about one local cloud. Delays in market seconds, see the module."""

    state_dir: Path
    socket: Path | None = None
    market: Source = ConstantSource()
    instance_types: tuple[InstanceType, ...] = (InstanceType(),)
    on_demand_capacity: NonNegativeInt | None = None  # per zone and type; None: without limit
    speed: PositiveFloat = 1.0
    seed: int = 1
    boot_delay: NonNegativeFloat = 30.0
    stopped_start_delay: NonNegativeFloat = 10.0
    boot_jitter: Share = 0.2  # a delay varies by this share up and down
    engine_port: Port = 8000
    metadata_port: Port = 8001
    reclaiming: Reclaiming = Reclaiming()
    channels: Channels = Channels()
    keeping: Keeping = Keeping()

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def socket_path(self) -> Path:
        """Where the API listens."""
        return self.socket if self.socket is not None else self.state_dir / "cloud.sock"


def check(config: LocalCloudConfig) -> None:
    """Find what types cannot say. Raises SetupError."""
    if len(bytes(config.socket_path)) > _LONGEST_SOCKET_PATH:
        raise SetupError(
            f"socket: {config.socket_path}: longer than {_LONGEST_SOCKET_PATH} bytes; "
            "set `socket` to a shorter path"
        )
    if config.engine_port == config.metadata_port:
        raise SetupError(f"metadata_port: {config.metadata_port} is also engine_port; give it another")
    names = [kind.name for kind in config.instance_types]
    if not names or len(set(names)) != len(names):
        raise SetupError("instance_types: at least one, each name once")
    shares = config.reclaiming.late_share + config.reclaiming.missing_share
    if shares > 1.0:
        raise SetupError(f"reclaiming: late_share + missing_share is {shares:g}; at most 1")
    if config.reclaiming.late_notice > config.reclaiming.notice:
        raise SetupError("reclaiming: late_notice is longer than notice; make it shorter")


def build_market(config: LocalCloudConfig) -> SpotMarket:
    """The market that the configuration names. Raises SetupError."""
    source = config.market
    if isinstance(source, ConstantSource):
        rows = [(zone.zone, zone.capacity, zone.spot_price, zone.on_demand_price) for zone in source.zones]
        if len({row[0] for row in rows}) != len(rows) or not rows:
            raise SetupError("market: zones: at least one, each name once")
        return constant(rows, region=source.region)
    try:
        if isinstance(source, TraceSource):
            return _started(read_spotset(source.directory), source, source.zones)
        seed = config.seed if source.seed is None else source.seed
        return _started(synthesise(source.parameters, seed), source, ())
    except SpotsetError as error:
        raise SetupError(f"market: {error}") from None
    except ValueError as error:
        raise SetupError(f"market: {error}") from None


def _started(spotset: SpotSet, source: TraceSource | SyntheticSource, zones: tuple[str, ...]) -> SpotMarket:
    if source.start != "liveliest":
        return from_spotset(spotset, zones=zones, start=source.start)
    length = spotset.ticks * spotset.gap_seconds
    start = liveliest_start(from_spotset(spotset, zones=zones), source.span, held=source.held, until=length)
    return from_spotset(spotset, zones=zones, start=start)


_FILE = TypeAdapter(LocalCloudConfig)


def load_config(path: Path) -> LocalCloudConfig:
    """Read a JSON configuration file. Relative paths in it start at the file's directory.

    Raises SetupError with one line per mistake: file, key, what is wrong.
    """
    try:
        config = _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from None
    except PydanticError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise SetupError("\n".join(lines)) from None
    base = path.parent
    config = replace(config, state_dir=base / config.state_dir)
    if config.socket is not None:
        config = replace(config, socket=base / config.socket)
    if isinstance(config.market, TraceSource):
        config = replace(config, market=replace(config.market, directory=base / config.market.directory))
    check(config)
    return config


def dump_config(config: LocalCloudConfig, path: Path) -> None:
    """Write a configuration file that `load_config` reads back as an equal value (with absolute paths)."""
    path.write_bytes(_FILE.dump_json(config, indent=1))
