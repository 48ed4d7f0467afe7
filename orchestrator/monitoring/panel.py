"""One panel of the Grafana dashboard, and the expressions that many of them share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are (expression, legend), `unit` is Grafana's name of it, `stat` one number.

    POOL in an expression stands for the pools that are chosen at the top.
    """

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    stat: bool = False
    stacked: bool = False


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram of which `metric` is the buckets, for each value of the labels `by`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}[$__rate_interval])))"
