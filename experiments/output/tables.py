"""Tables in Markdown and as pictures, and the format of a mean and its spread."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, which tables alone do without


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table with aligned columns; numbers to the right."""
    cells = [[format(c, ",") if isinstance(c, int) else str(c) for c in row] for row in rows]
    right = [all(isinstance(row[n], int | float) or row[n] == "" for row in rows) for n in range(len(head))]
    widths = [max(len(row[n]) for row in [head, *cells]) for n in range(len(head))]

    def line(row: list[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(head), rule, *map(line, cells)])


def percent(rate: float) -> float:
    return round(100 * rate, 6)  # 29, not 28.999999999999996


def mean(rates: Sequence[float]) -> float | None:
    """The mean; None if there is no number."""
    return statistics.mean(rates) if rates else None


def deviation(rates: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None for a single number."""
    return statistics.stdev(rates) if len(rates) > 1 else None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a normal sample, by Student's t with n - 1; None for a single number."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def plus_minus(value: float, spread: float | None, digits: int = 1) -> str:
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def shown(rates: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return plus_minus(statistics.mean(rates), deviation(rates))


def measured(name: str, each: Mapping[str, Any]) -> dict[str, Any]:
    """Repeated measurements for result.json, by row, or by row and column: means, called `name`, and more."""

    def by(statistic: Callable[[Sequence[float]], Any], values: Any) -> Any:
        if isinstance(values, Mapping):
            return {str(key): by(statistic, entry) for key, entry in values.items()}
        return statistic(values)

    return {name: by(mean, each), "deviation": by(deviation, each), "each": by(list, each)}


def dots(
    labels: Sequence[str],
    paper: Sequence[Mapping[str, float | None]],
    ours: Sequence[Mapping[str, Sequence[float]]],
    columns: Mapping[str, str],
    words: str,
) -> "Figure":
    """The table as a picture: a line for each row, a panel for each column, the paper's number and ours.

    Args:
        labels: of the rows.
        paper, ours: for each row, the paper's number and our measurements by column.
        columns: the panels' titles by column.
        words: the caption.
    """
    from experiments.output.pages import OKABE_ITO, caption, plots

    figure = plots(1.3 + 0.2 * len(labels))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    red = OKABE_ITO[1]
    for axis, (column, title) in zip(panels, columns.items(), strict=True):
        for y, (published, measurements) in enumerate(zip(paper, ours, strict=True)):
            if published.get(column) is not None:
                axis.plot(published[column], y, "D", color="0.45", markerfacecolor="white", markersize=5)
            if rates := measurements.get(column):
                axis.plot(rates, [y] * len(rates), "|", color=red, alpha=0.5, markersize=8)
                axis.errorbar(statistics.mean(rates), y, xerr=deviation(rates), fmt="o", color=red, markersize=4)
        axis.set_title(title)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    panels[0].plot([], [], "D", color="0.45", markerfacecolor="white", label="paper")
    panels[0].errorbar([], [], xerr=[], fmt="o", color=red, label="ours: mean and standard deviation")
    panels[0].plot([], [], "|", color=red, alpha=0.5, markersize=8, label="each measurement of ours")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    caption(figure, words)
    return figure
