"""The configuration: one TOML file, read into frozen values, with every fault reported at once.

Relative paths start from the directory of the file, so the same file means the same pool wherever the daemon
is started; `{state_dir}` in a path stands for `daemon.state_dir`. The tables know no more than their own
keys; what must hold between them is in `orchestrator.config.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from cloud.kinds import CloudName
from orchestrator.config.checks.advice import advice
from orchestrator.config.checks.check import check
from orchestrator.config.clouds import on_cloud
from orchestrator.config.errors import ConfigError, Problem, Source, problems_of
from orchestrator.config.gateways import with_gateways
from orchestrator.config.tables.budget import BudgetConfig
from orchestrator.config.tables.cost import CostConfig
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.config.tables.gateway import SharedGatewayTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.config.tables.route import RouteConfig
from orchestrator.config.toml_lines import key_lines
from orchestrator.config.toml_text import TomlError, read_toml
from orchestrator.config.types import Section, resolve_path, revised
from policies.model import Pool

__all__ = [
    "Config",
    "ConfigError",
    "Problem",
    "build_config",
    "load_config",
]

_IN_MEMORY: Final = Source(file="configuration", lines=None)
_S = TypeVar("_S", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration that has passed every check. All paths are ready to use."""

    daemon: DaemonConfig
    pools: Mapping[str, PoolConfig]  # each with what it has from [gateway]
    gateway: SharedGatewayTable = field(default_factory=SharedGatewayTable)  # of the gateway's process
    providers: Mapping[str, ProviderConfig] = field(default_factory=dict)
    routes: tuple[RouteConfig, ...] = ()
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    path: Path | None = None  # its file; None: built in memory
    warnings: tuple[Problem, ...] = ()  # doubtful settings that do not stop the daemon
    source: Source = _IN_MEMORY  # knows its lines

    def problem(self, path: Sequence[str | int], text: str) -> Problem:
        """A fault of the key at `path`, with its place in the file."""
        return self.source.problem(path, text)

    def advice(self) -> tuple[Problem, ...]:
        """What runs as it is written and is a mistake more often than not, in the order of the file."""
        found = advice(self.pools, self.routes, self.providers)
        return tuple(sorted(self.problem(path, text) for path, text in found))

    def only(self, name: str) -> Config:
        """The same with this pool alone."""
        return replace(self, pools=MappingProxyType({name: self.pools[name]}))

    def on_cloud(self, kind: CloudName) -> Config:
        """The same with the only pool on one of its clouds alone; see `orchestrator.config.clouds`."""
        return replace(self, pools=MappingProxyType({self.pool_name: on_cloud(self.pool, kind)}))

    @property
    def pool_name(self) -> str:
        """The name of the only pool."""
        return next(iter(self.pools))

    @property
    def pool(self) -> PoolConfig:
        """The settings of the only pool."""
        return self.pools[self.pool_name]

    @property
    def wanted(self) -> Pool:
        """The only pool as the policies take it."""
        return self.pool.as_pool(self.pool_name)


def load_config(file: str | Path, role: Role = "any") -> Config:
    """Read and check a configuration file. Raises ConfigError with every fault that it has."""
    file = Path(file)
    try:
        data, text = read_toml(file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        what = f"cannot be read ({reason}); give the path of a TOML file, such as examples/pool.toml"
        raise ConfigError([Problem(str(file), 0, "", what)]) from error
    except TomlError as error:
        raise ConfigError([Problem(str(file), error.line, "", str(error))]) from error
    source = Source(file=str(file), lines=key_lines(text))
    return _build(data, source, base=file.parent, path=file, role=role)


def build_config(data: Mapping[str, Any], *, base: str | Path = ".") -> Config:
    """Check a configuration built in memory, of the same shape as the file. Raises ConfigError.

    Plain numbers are taken in the base unit (seconds, fractions, US dollars per hour) if they are not text.
    """
    return _build(data, _IN_MEMORY, base=Path(base), path=None, role="any")


def _build(data: Mapping[str, Any], source: Source, *, base: Path, path: Path | None, role: Role) -> Config:
    try:
        parsed = ConfigFile.model_validate(dict(data), context={"units": path is not None})
    except ValidationError as error:
        raise ConfigError(problems_of(error, source, ConfigFile)) from error
    base = base.absolute()
    state_dir = resolve_path(parsed.daemon.state_dir, base=base, state_dir=base)
    parsed = _with_paths(with_gateways(parsed), base=base, state_dir=state_dir)
    errors, warnings = check(parsed, source, role)
    if errors:
        raise ConfigError(errors)
    return Config(
        daemon=parsed.daemon,
        pools=MappingProxyType(dict(parsed.pool)),
        gateway=parsed.gateway,
        providers=MappingProxyType(dict(parsed.provider)),
        routes=parsed.route,
        budget=parsed.budget,
        cost=parsed.cost,
        path=path,
        warnings=tuple(sorted(warnings)),
        source=source,
    )


def _with_paths(section: _S, *, base: Path, state_dir: Path) -> _S:
    """The same section with every path in it absolute."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changed[name] = resolve_path(value, base=base, state_dir=state_dir)
        elif isinstance(value, Section):
            changed[name] = _with_paths(value, base=base, state_dir=state_dir)
        elif isinstance(value, dict):
            changed[name] = {
                key: _with_paths(item, base=base, state_dir=state_dir) if isinstance(item, Section) else item
                for key, item in value.items()
            }
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            changed[name] = tuple(_with_paths(item, base=base, state_dir=state_dir) for item in value)
    return revised(section, changed)
