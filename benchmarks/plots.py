"""Pictures of the results, each as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.figures import Spread
from benchmarks.report import TITLES
from benchmarks.results import Results
from benchmarks.systems import AT_LEAST_ONCE

LEAST, MOST, OURS = "#4878a8", "#b8b8b8", "#2e8b57"  # at least once, at most once, Umbel
Bars = list[tuple[str, Spread, str]]
Find = Callable[[str, str, str], Spread | None]


def draw(results: Results, directory: Path) -> None:
    """Write the pictures of what was measured."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"svg.hashsalt": "umbel", "svg.fonttype": "none"})
    plt.rcParams.update({"figure.constrained_layout.use": True})
    for broker in results.about["options"]["brokers"]:
        on = f"on {TITLES[broker]}"
        bars = {
            "drain": ("jobs done a second", _bars(results, broker, "drain")),
            "send": ("messages a second, one at a time", _bars(results, broker, "send")),
            "send-many": ("messages a second, in batches", _bars(results, broker, "send_many")),
            "idle": ("p99 of the idle round trip, ms", _bars(results, broker, "p99_ms")),
        }
        for name, (what, lines) in bars.items():
            if lines:
                _draw_bars(f"{what}, {on}", lines, directory / f"{name}-{broker}")
        _draw_backlog(results, broker, directory / f"backlog-{broker}")


def _bars(results: Results, broker: str, measure: str) -> Bars:
    bars: Bars = []
    for name, system in results.systems.items():
        for position, pool in enumerate(results.pools(name, broker)):
            if measure.startswith("send") and position:
                continue
            spread = results.spread(measure, broker, name, pool.name)
            workers = "" if measure.startswith("send") else f": {pool.name}"
            if spread:
                bars.append((system["title"] + workers, spread, _colour(name, system)))
    return sorted(bars, key=lambda bar: bar[1].median, reverse=measure == "p99_ms")


def _colour(name: str, system: dict[str, Any]) -> str:
    if name.startswith("umbel"):
        return OURS
    return LEAST if system["safety"] == AT_LEAST_ONCE else MOST


def _draw_bars(title: str, bars: Bars, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.27 * len(bars)))
    medians = [spread.median for _, spread, _ in bars]
    spreads = [
        [spread.median - spread.low for _, spread, _ in bars],
        [spread.high - spread.median for _, spread, _ in bars],
    ]
    colours = [colour for _, _, colour in bars]
    drawn = axes.barh([label for label, _, _ in bars], medians, color=colours, xerr=spreads)
    digits = ",.0f" if max(medians) > 1_000 else ",.1f"
    axes.bar_label(drawn, [f"{median:{digits}}" for median in medians], padding=4, fontsize=8)
    if max(medians) > 100 * min(medians):
        axes.set_xscale("log")
    axes.set_title(title, loc="left")
    axes.margins(x=0.15)
    legend = {"Umbel": OURS, "at least once": LEAST, "at most once": MOST}
    marks = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in legend.values()]
    axes.legend(marks, legend, fontsize=7, frameon=False, loc="best")
    _save(figure, path)


def _draw_backlog(results: Results, broker: str, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    drawn = False
    for axes, (measure, title) in zip(
        panels, (("send_us", "µs to send one"), ("drain_us", "µs to get one done")), strict=True
    ):
        for name, system in results.systems.items():
            points = _backlog(results, broker, name, measure)
            if points:
                drawn = True
                width = 2.5 if name == "umbel" else 1.2
                axes.plot(*zip(*points, strict=True), marker="o", lw=width, label=system["title"])
        axes.set(xscale="log", yscale="log", ylim=(10, 20_000), title=title)
        axes.set_xlabel(f"waiting on {TITLES[broker]}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    if drawn:
        panels[1].legend(fontsize=7, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
        _save(figure, path)
    plt.close(figure)


def _backlog(results: Results, broker: str, name: str, measure: str) -> list[tuple[int, float]]:
    pool = next((pool.name for pool in results.pools(name, broker)), "")
    sizes = sorted({entry["waiting"] for entry in results.samples if entry["waiting"]})
    spreads = [(size, results.spread(measure, broker, name, pool, size)) for size in sizes]
    return [(size, spread.median) for size, spread in spreads if spread]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
