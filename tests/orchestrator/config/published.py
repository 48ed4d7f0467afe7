"""The published facts of published_fits.toml, and what the fit check says of each."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.checks.engine import need_of, split_of, utilisation_of
from orchestrator.config.tables.pool import PoolConfig
from policies.model_fit import Gpus, Verdict, check

FILE = Path(__file__).parent / "published_fits.toml"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One of the file; `on` is the day it was published, or read where the page has no date."""

    model: str
    args: tuple[str, ...]
    gpus: Gpus
    fits: bool
    decides: str
    says: str
    source: str
    on: datetime.date
    dated: bool

    @property
    def verdict(self) -> Verdict:
        """What the check says, by the same path as `validate`."""
        pool = PoolConfig(replicas=1, model=self.model, engine={"kind": "vllm", "args": self.args})
        need = need_of(pool)
        assert need is not None, f"the size of {self.model} is not known"
        return check(need, self.gpus, split_of(pool, self.gpus.count), utilisation_of(pool))


def facts() -> list[Fact]:
    """All of the file."""
    rows = tomllib.loads(FILE.read_text("utf-8"))["fact"]
    return [
        Fact(
            model=row["model"],
            args=tuple(row["args"]),
            gpus=Gpus(count=row["gpus"][0], kind=row["gpus"][1], memory=row["gpus"][2]),
            fits=row["fits"],
            decides=row["decides"],
            says=row["says"],
            source=row["source"],
            on=row.get("date") or row["seen"],
            dated="date" in row,
        )
        for row in rows
    ]
