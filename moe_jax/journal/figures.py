"""Pictures of a training run, as pixels for `MetricsWriter.image`."""

import jax
import numpy as np
from jaxtyping import Real, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

DOTS_PER_INCH = 100
MAX_CELLS_WITH_NUMBERS = 128
DARKEST_LOAD = 3.0  # from here on the colour stays the same; fixed, so that the images of a run compare


def expert_load_image(load: Real[np.ndarray | jax.Array, "M E"]) -> UInt8[np.ndarray, "height width 3"]:
    """A heat map of the experts' load: MoE layers down, experts across; white is balanced, red above, blue below.

    Args:
        load: each expert's share of its layer's assignments, in any unit: every layer is scaled to a mean of 1. NaN
            (grey): an expert that the layer does not have.

    Returns:
        RGB pixels; their number depends on the shape of `load` alone.
    """
    load = np.asarray(load, np.float64)
    mean = np.nanmean(load, axis=1, keepdims=True)
    load = load / np.where(mean > 0, mean, 1)
    layers, experts = load.shape
    size = (np.clip(0.45 * experts, 3, 10) + 2.2, np.clip(0.35 * layers, 0.7, 8) + 1.2)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="expert", ylabel="MoE layer", title="expert load (1 = balanced)", facecolor="0.6")
    norm = TwoSlopeNorm(vcenter=1, vmin=0, vmax=DARKEST_LOAD)
    heat = axes.imshow(load, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(_ticks(experts))
    axes.set_yticks(_ticks(layers))
    figure.colorbar(heat, ax=axes, ticks=[0, 1, 2, 3], extend="max")
    if load.size <= MAX_CELLS_WITH_NUMBERS:
        _write_numbers(axes, load, heat)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _ticks(count: int) -> range:
    """Labels for about 16 of `count` rows or columns, a power of two apart."""
    step = 1
    while count > 16 * step:
        step *= 2
    return range(0, count, step)


def _write_numbers(axes, load: np.ndarray, heat) -> None:
    """Writes each cell's load into it, light on dark colours."""
    dark = heat.cmap(heat.norm(load))[..., :3].mean(axis=-1) < 0.5
    for layer, expert in np.argwhere(np.isfinite(load)):
        color = "white" if dark[layer, expert] else "black"
        axes.text(expert, layer, f"{load[layer, expert]:.2f}", ha="center", va="center", fontsize=7, color=color)
