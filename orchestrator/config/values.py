"""Every key of a configuration with its value in force, for showing and for comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic.fields import FieldInfo

from orchestrator.config.errors import Key
from orchestrator.config.gateways import place
from orchestrator.config.load import Config
from orchestrator.config.tables.gateway import POOL_KEYS
from orchestrator.config.tables.pool import chosen
from orchestrator.config.types import Section, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key."""

    path: Key  # where a file has it
    source: Key  # where it is written, if elsewhere
    identity: Key  # the same in every file
    field: FieldInfo  # describes it
    value: object  # in base units: seconds, fractions, dollars, bytes

    @property
    def text(self) -> str:
        """The value as a file would have it; "nothing" for one that is not set and has no word for that."""
        return written(self.field, self.value)


def settings(config: Config) -> Iterator[Setting]:
    """All keys, in the order of the file's reference."""
    yield from _of(config.daemon, ("daemon",))
    yield from _shared(config)
    for name, pool in config.pools.items():
        at = ("pool", name)
        other: dict[Key, object] = {(*at, *key): value for key, value in chosen(pool).items()}
        for setting in _of(pool, at, other):
            if setting.path[2] == "gateway":
                yield from _of_gateway(config, name, setting)
            else:
                yield setting
    for name, provider in config.providers.items():
        yield from _of(provider, ("provider", name))
    for number, route in enumerate(config.routes):
        for setting in _of(route, ("route", number)):
            yield replace(setting, identity=("route", route.name, setting.path[-1]))
    yield from _of(config.budget, ("budget",))
    yield from _of(config.cost, ("cost",))


def _shared(config: Config) -> Iterator[Setting]:
    """What [gateway] holds: the keys of the process, unless the only pool has them, and what it says for all
    pools."""
    for setting in _of(config.gateway, ("gateway",)):
        key = str(setting.path[-1])
        of_process = key not in POOL_KEYS and place(config.gateway, config.pools, key) == setting.path
        if of_process or (key in POOL_KEYS and key in config.gateway.model_fields_set):
            yield setting


def _of_gateway(config: Config, pool: str, setting: Setting) -> Iterator[Setting]:
    """A key of a pool's gateway table, if it is that pool's."""
    key = str(setting.path[-1])
    if key in POOL_KEYS:
        yield replace(setting, source=place(config.gateway, config.pools, key, pool))
    elif place(config.gateway, config.pools, key) == setting.path:
        yield replace(setting, identity=("gateway", key))


def _of(section: Section, at: Key, chosen: Mapping[Key, object] | None = None) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, path = getattr(section, name), (*at, name)
        if isinstance(value, Section):
            yield from _of(value, path, chosen)
        elif isinstance(value, dict) and any(isinstance(item, Section) for item in value.values()):
            for key, item in value.items():
                yield from _of(item, (*path, key), chosen)
        else:
            value = (chosen or {}).get(path, value)
            yield Setting(path=path, source=path, identity=path, field=field, value=value)
