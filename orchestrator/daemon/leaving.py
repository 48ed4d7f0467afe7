"""The settings of a pool that is being removed, as text for the journal: no file has them any more."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

from orchestrator.config import show
from orchestrator.config.load import Config, ConfigError, build_config
from orchestrator.words import plural


class _Open:
    """Hides nothing: what is written here is read by this daemon alone."""

    def value(self, value: object, _name: str) -> object:
        return value


def encode(config: Config) -> str:
    """The only pool of a configuration, every key of it, as a file would have it."""
    hides_nothing: Any = _Open()
    alone = replace(config, routes=(), providers={})
    return show.toml(show.view(alone, effective=True, redactor=hides_nothing), origin=False)


def decode(text: str, name: str, config: Config) -> Config:
    """The configuration in force with this pool alone. Raises ValueError when the text is none."""
    try:
        written = tomllib.loads(text)["pool"][name]
        state_dir = {"state_dir": str(config.daemon.state_dir)}
        pool = build_config({"daemon": state_dir, "pool": {name: written}}).pools[name]
    except (ConfigError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ValueError(str(error)) from error
    return replace(config, pools={name: pool})


def forgotten(pool: str, nodes: int) -> str:
    """What to say of a pool whose nodes the journal knows and that no file has."""
    return (
        f"pool {pool}: is in the journal with {plural(nodes, 'node')} and not in the file; what there is "
        "stays as it is and costs what it costs: write the pool back, then remove it with `orchestrator "
        "reload --force`, or end its nodes by hand"
    )
