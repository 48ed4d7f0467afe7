"""Every key of a configuration with its value in force, for showing and for comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from orchestrator.config.load import Config
from orchestrator.config.tables.pool import chosen
from orchestrator.config.types import Section, written

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key. `field` describes it, `value` is in base units: seconds, fractions, US dollars, bytes."""

    path: Path
    field: FieldInfo
    value: object

    @property
    def text(self) -> str:
        """The value as a file would have it; "nothing" for one that is not set and has no word for that."""
        return written(self.field, self.value)


def settings(config: Config) -> Iterator[Setting]:
    """All keys, in the order of the file's reference."""
    yield from _of(config.daemon, ("daemon",))
    for name, pool in config.pools.items():
        at = ("pool", name)
        yield from _of(pool, at, {(*at, *key): value for key, value in chosen(pool).items()})


def _of(section: Section, at: Path, chosen: Mapping[Path, object] | None = None) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, path = getattr(section, name), (*at, name)
        if isinstance(value, Section):
            yield from _of(value, path, chosen)
        elif isinstance(value, dict) and any(isinstance(item, Section) for item in value.values()):
            for key, item in value.items():
                yield from _of(item, (*path, key), chosen)
        else:
            yield Setting(path=path, field=field, value=(chosen or {}).get(path, value))
