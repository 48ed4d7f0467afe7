"""What pictures have in common: matplotlib if it is there, colours, axes.

They need the optional extra: `pip install spot-orchestrator[plot]` (matplotlib), and no display. Colours are
mostly those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

ENDINGS: Final = (".png", ".svg", ".pdf")

BLUE, ORANGE, GREEN, PURPLE = "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
RED, INK, GREY, PALE = "#C8102E", "#22262A", "#8A9099", "#C9CDD2"
_WIDTH, _DPI = 9.6, 110  # inches, dots per inch


class PlotMissing(Exception):
    """matplotlib is not installed; the message says how to install it."""


class NoPlace(Exception):
    """A picture cannot be written to a file of that name; the message says why."""


def need_matplotlib() -> None:
    """Raise PlotMissing unless a picture can be drawn."""
    if find_spec("matplotlib") is None:
        raise PlotMissing(
            "the picture needs matplotlib; install it with `pip install 'spot-orchestrator[plot]'`"
        )


def need_place(file: Path) -> None:
    """Raise NoPlace unless a picture can be written there."""
    if file.suffix.lower() not in ENDINGS:
        raise NoPlace(f"end the name in {', '.join(ENDINGS)}")
    if not file.absolute().parent.is_dir():
        raise NoPlace(f"there is no directory {file.absolute().parent}")


def new_figure(height: float) -> Any:
    """An empty figure, so many inches high. Raises PlotMissing."""
    need_matplotlib()
    # "constrained" would place by a solver whose rounding depends on where its objects lie in memory.
    return import_module("matplotlib.figure").Figure(
        figsize=(_WIDTH, height), dpi=_DPI, facecolor="white", layout="tight"
    )


def title(figure: Any, text: str) -> None:
    """The line above all panels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)


def style(axes: Any, title: str) -> None:
    """Grid, frame and title of a panel."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=5)
    axes.set_facecolor("white")
    axes.grid(axis="y", color="#E4E7EA", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
