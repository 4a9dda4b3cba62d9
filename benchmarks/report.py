"""What a benchmark found, beside what was to be reached, as one table."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from process import Unavailable

WIDEST = 60
"""Characters of a cell in a table."""
FAILURES = (AssertionError, OSError, subprocess.SubprocessError, Unavailable)
"""What may go wrong with one benchmark while the others still run."""
HEAD = ("benchmark", "ours", "peer", "ratio", "bar", "reached")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ours: str
    peer: str = ""
    ratio: str = ""
    bar: str = ""
    reached: bool | None = None
    """None: there is no bar, or it could not be measured."""

    def cells(self) -> tuple[str, ...]:
        """As it is printed."""
        verdict = {True: "yes", False: "NO", None: ""}[self.reached]
        return (self.name, self.ours, self.peer, self.ratio, self.bar, verdict)

    def short(self) -> tuple[str, ...]:
        """The same for a table: of a long story only its beginning."""
        return tuple(cell.partition("\n")[0][:WIDEST] for cell in self.cells())


def missing(name: str, why: BaseException) -> Row:
    """The line of a benchmark that has no figure. What cannot run here has missed no bar; what went wrong has."""
    if isinstance(why, Unavailable):
        return Row(name, f"not measured: {why}")
    return Row(name, f"failed: {type(why).__name__} {why}", reached=False)


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure."""

    rounds: int = 12
    seconds: float = 0.5
    """Of one turn."""
    edge: str | None = None
    """`server.edge` of the gate; None: its default."""


def against(
    name: str, ours: Sequence[float], peer: tuple[str, Sequence[float]], *, least: float | None, unit: str = ""
) -> Row:
    """More is better: our figures of each round beside a peer's of the same round. The ratio is the median of the rounds'."""
    ratio = statistics.median(mine / its for mine, its in zip(ours, peer[1], strict=True))
    bar = f"≥ {least:g} × {peer[0]}" if least is not None else ""
    return Row(
        name,
        f"{statistics.median(ours):,.0f}{unit}",
        f"{peer[0]} {statistics.median(peer[1]):,.0f}{unit}",
        f"{ratio:.2f}",
        bar,
        ratio >= least if least is not None else None,
    )


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def show(rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
