"""Pictures of a training run, as pixels for `MetricsWriter.image`."""

import jax
import numpy as np
from jaxtyping import Real, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

# TensorBoard shows images about 300 pixels wide, however large they are. At this width in inches, FONT_SIZE points are
# about 11 pixels high there.
WIDTH, DOTS_PER_INCH, FONT_SIZE = 4.0, 150, 13
HEIGHTS = 2.0, 4.0  # inches, of few and of many layers
MAX_TICKS = 5
DARKEST_LOAD = 3.0  # from here on the colour stays the same. It is fixed, so that the images of a run compare


def expert_load_image(load: Real[np.ndarray | jax.Array, "M E"]) -> UInt8[np.ndarray, "height width 3"]:
    """A heat map of the experts' load, legible at a width of 300 pixels.

    MoE layers run down and experts across. White is balanced, red above, blue below.

    Args:
        load: each expert's share of its layer's choices, in any unit, since every layer is scaled to a mean of 1. NaN
            stands for an expert that the layer does not have, and is grey.

    Returns:
        RGB pixels; their number depends on the shape of `load` alone.
    """
    load = np.asarray(load, np.float64)
    mean = np.nanmean(load, axis=1, keepdims=True)
    load = load / np.where(mean > 0, mean, 1)
    layers, experts = load.shape
    height = np.clip(1.4 + 0.15 * layers, *HEIGHTS)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="0.6")
    norm = TwoSlopeNorm(vcenter=1, vmin=0, vmax=DARKEST_LOAD)
    heat = axes.imshow(load, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(_ticks(experts))
    axes.set_yticks(_ticks(layers))
    axes.tick_params(labelsize=FONT_SIZE)
    axes.set_xlabel("expert", fontsize=FONT_SIZE)
    axes.set_ylabel("MoE layer", fontsize=FONT_SIZE)
    bar = figure.colorbar(heat, ax=axes, ticks=[0, 1, 3], extend="max", aspect=10)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    bar.set_label("load / mean", fontsize=FONT_SIZE)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _ticks(count: int) -> range:
    """Ticks for at most `MAX_TICKS` of `count` rows or columns, a power of two apart."""
    step = 1
    while count > MAX_TICKS * step:
        step *= 2
    return range(0, count, step)
