"""Plots of a run. Raises ImportError where matplotlib is not installed: it is optional."""

from __future__ import annotations

from pathlib import Path

from gpupool.bench.ratio import Ratio
from gpupool.bench.results import Run


def draw(run: Run, folder: Path) -> list[Path]:
    """One picture a mode: each row's ratio to native and its interval."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = []
    for mode, rows in run.ratios().items():
        path = folder / f"ratios-{mode.replace('+', '-')}.png"
        _ratios(mode, rows, path)
        drawn.append(path)
    return drawn


def _ratios(mode: str, rows: dict[str, Ratio], path: Path) -> None:
    from matplotlib import pyplot, ticker

    names = list(reversed(rows))
    medians = [rows[name].median for name in names]
    below = [max(0.0, rows[name].median - rows[name].low) for name in names]
    above = [max(0.0, rows[name].high - rows[name].median) for name in names]
    widths = [each - 1.0 for each in medians]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.24 * len(names)))
    colours = ["tab:green" if each <= 1 else "tab:red" for each in medians]
    axes.barh(names, widths, left=1.0, xerr=[below, above], color=colours, alpha=0.7, capsize=2)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel(f"{mode} / native (median of pairs, 95 % interval); less is faster")
    axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
