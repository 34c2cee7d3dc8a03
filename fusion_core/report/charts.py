"""Charts as inline SVG that take their colours from the page, so that they read in light, dark and print."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusion_core.report.run_summary import MergeSummary, TrainingCurve

# Colours that stand for the page's own: matplotlib knows hexadecimal colours only, so these are exchanged in the SVG.
TEXT = "#010203"
GRID = "#010204"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
PAGE_COLOURS = {TEXT: "currentColor", GRID: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
STYLE: Any = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    # Names are plain text, whatever dollar signs they hold.
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 9.5,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}
WIDTH_INCHES = 5.2
MAX_POINTS = 600
HEAT_COLOURS = "viridis"
MIN_HEAT_SPREAD = 0.02
LAYER = re.compile(r"^(?P<before>.*?)\.(?P<layer>\d+)\.(?P<matrix>.+)$")


def loss_chart(curves: Sequence[TrainingCurve], name: str = "loss") -> str:
    """Draw the label's cross-entropy of every target over its steps, and below it fusion loss and learning rate.

    Returns
    -------
    str
        An ``<svg>`` element, the same for the same curves.
    """
    with rc_context(STYLE | {"svg.hashsalt": name}):
        fused = [curve for curve in curves if any(value is not None for value in curve.fusion_loss)]
        heights = [3, 3, 1.2] if fused else [3, 1.2]
        figure = Figure(figsize=(WIDTH_INCHES, 1.2 + 0.65 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for number, curve in enumerate(curves):
            label = f"{curve.target} (λ = {curve.lm_weight:g})"
            _line(panels[0], curve.steps, curve.lm_loss, number, label)
            if fused:
                _line(panels[1], curve.steps, curve.fusion_loss, number, label)
            _line(panels[-1], curve.steps, curve.learning_rate, number, label)
        panels[0].set_title("cross-entropy of the label (nats per response position)", loc="left")
        if fused:
            panels[1].set_title("cross-entropy of the fused distribution", loc="left")
        panels[-1].set_title("learning rate", loc="left")
        panels[-1].set_ylim(bottom=0)
        panels[-1].yaxis.set_major_locator(MaxNLocator(2))
        panels[-1].yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}" if rate else "0")
        panels[-1].set_xlabel("optimizer step")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return _svg(figure, name, "Training losses over optimizer steps")


def merge_weight_charts(merge: MergeSummary) -> list[tuple[str, str]]:
    """Draw a heat map of the merge weights for every target, layers across and matrices down.

    All maps share one colour scale, whose middle is the equal share 1 / targets. Experts of one layer are averaged.

    Returns
    -------
    list of (target name, ``<svg>`` element)
        Empty where no tensor belongs to a layer.
    """
    layers, matrices, grid_TML = weight_grid(merge)
    if not layers:
        return []
    equal = 1.0 / len(merge.targets)
    spread = max(float(np.nanmax(np.abs(grid_TML - equal))), MIN_HEAT_SPREAD)
    scale = Normalize(equal - spread, equal + spread)
    charts = []
    for number, target in enumerate(merge.targets):
        name = f"weights-{number}"
        with rc_context(STYLE | {"svg.hashsalt": name, "axes.grid": False}):
            figure = Figure(figsize=(WIDTH_INCHES, 1.15 + 0.2 * len(matrices)), layout="constrained")
            axes = figure.subplots()
            axes.pcolormesh(
                np.arange(len(layers) + 1) - 0.5,
                np.arange(len(matrices) + 1) - 0.5,
                grid_TML[number],
                cmap=HEAT_COLOURS,
                norm=scale,
                edgecolors="face",
                linewidth=0.2,
            )
            axes.invert_yaxis()
            axes.set_yticks(range(len(matrices)), matrices, fontsize=8)
            every = max(1, round(len(layers) / 8))
            axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
            axes.set_xlabel("layer")
            for spine in axes.spines.values():
                spine.set_visible(False)
            bar = figure.colorbar(ScalarMappable(scale, HEAT_COLOURS), ax=axes, pad=0.02, fraction=0.05)
            bar.outline.set_visible(False)  # type: ignore[operator]
            bar.set_ticks([equal - spread, equal, equal + spread])
            bar.set_ticklabels([f"{equal - spread:.2f}", f"{equal:.2f}\nequal", f"{equal + spread:.2f}"])
            charts.append((target, _svg(figure, name, f"Merge weights of {target} by layer and matrix")))
    return charts


def weight_grid(merge: MergeSummary) -> tuple[list[int], list[str], np.ndarray]:
    """Arrange merge weights by layer and matrix.

    Returns
    -------
    layers : list of int
        L layer numbers.
    matrices : list of str
        M matrix names without the layer's prefix and ``.weight``, in the checkpoint's order.
    grid : float64 [targets, M, L]
        NaN where a layer has no such matrix.
    """
    cells: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for tensor, weights in merge.weights.items():
        if match := LAYER.match(tensor):
            matrix = re.sub(r"\.\d+\.", ".*.", match["matrix"]).removesuffix(".weight")
            cells.setdefault((matrix, int(match["layer"])), []).append(weights)
    layers = sorted({layer for _, layer in cells})
    matrices = list(dict.fromkeys(matrix for matrix, _ in cells))
    grid_TML = np.full((len(merge.targets), len(matrices), len(layers)), np.nan)
    for (matrix, layer), several in cells.items():
        grid_TML[:, matrices.index(matrix), layers.index(layer)] = np.mean(several, axis=0)
    return layers, matrices, grid_TML


def weights_outside_layers(merge: MergeSummary) -> dict[str, tuple[float, ...]]:
    """Return the merge weights of tensors that belong to no layer, such as embeddings."""
    return {name: weights for name, weights in merge.weights.items() if not LAYER.match(name)}


def _line(axes: Axes, steps: Sequence[int], values: Iterable[float | None], number: int, label: str) -> None:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    # Long runs are drawn as means of neighbouring steps: more points than pixels only make the page heavy.
    width = -(-len(numbers) // MAX_POINTS) if len(numbers) else 1
    edges = np.arange(0, len(numbers), width)
    means = np.add.reduceat(numbers, edges) / np.diff([*edges, len(numbers)]) if len(numbers) else numbers
    dashes = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))[number // len(SERIES) % 4]
    colour = SERIES[number % len(SERIES)]
    axes.plot(np.asarray(steps)[edges], means, color=colour, linestyle=dashes, linewidth=1.6, label=label)


def _svg(figure: Figure, name: str, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # Several charts share one page, so their ids must not meet.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    for colour, page_colour in PAGE_COLOURS.items():
        text = text.replace(colour, page_colour)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1).strip()
