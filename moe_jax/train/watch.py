"""Warns of what a researcher would want to see at once: a loss that jumps, experts that are dead or take everything."""

import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float

from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import RunConfig

REMEMBERED = 32  # logged losses that a new one is compared with
FEWEST = 8  # of them, before anything is said
DEVIATIONS = 10.0  # median absolute deviations above the median ...
RISE = 0.1  # ... and this fraction above it: a spike
WINDOWS = 3  # windows of log.every steps in a row, before an expert is warned of
MEAN_CHOICES = 20  # fewer choices an expert in a window say little
ALL = 0.9  # of the tokens


class Watch:
    """Gets what is logged, every log.every steps, and warns once of each thing that begins."""

    def __init__(self, run: RunConfig):
        layers = [part.moe for part in moe_segments(run) for _ in range(part.num_moe_layers)]
        self._experts = [moe.num_experts for moe in layers]
        self._losses: deque[float] = deque(maxlen=REMEMBERED)
        self._in_spike = False
        self._since: dict[tuple[str, int, int], int] = {}  # (what, layer, expert): windows in a row

    def loss(self, step: int, loss: float) -> None:
        """Warns where the training loss has jumped."""
        if not np.isfinite(loss):
            return
        if len(self._losses) >= FEWEST:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(past - median) for past in self._losses)
            spike = loss > median + max(DEVIATIONS * deviation, RISE * abs(median))
            if spike and not self._in_spike:
                logging.warning(
                    "Step %d: the loss has jumped to %.4f (median of the last %d logged: %.4f)",
                    *(step, loss, len(self._losses), median),
                )
            self._in_spike = spike
        self._losses.append(loss)

    def experts(
        self, step: int, windows: Sequence[Float[np.ndarray, "M A"]], per_token: Sequence[Float[np.ndarray, " M"]]
    ) -> None:
        """Warns of experts that no token, or nearly every token, has chosen in the last windows.

        Args:
            step: the step of the last window.
            windows: choices of each expert in it, by segment.
            per_token: experts that a token chooses on average, by segment.
        """
        layers = [
            (counts, float(k))
            for part, of_part in zip(windows, per_token, strict=True)
            for counts, k in zip(part, of_part, strict=True)
        ]
        found: dict[tuple[str, int, int], int] = {}
        for layer, (experts, (counts, k)) in enumerate(zip(self._experts, layers, strict=True)):
            real = counts[:experts]  # without the null experts
            if real.sum() < MEAN_CHOICES * experts:
                continue
            share = real * (k / real.sum())  # of the tokens
            taking = share > ALL if 2 * k < experts else np.zeros(experts, bool)
            for what, those in (("took no token", share == 0), (f"took more than {ALL:.0%} of the tokens", taking)):
                keys = [(what, layer, int(expert)) for expert in np.flatnonzero(those)]
                found |= {key: self._since.get(key, 0) + 1 for key in keys}
        self._since = found
        self._tell(step)

    def _tell(self, step: int) -> None:
        """One line for each layer and kind that has just lasted `WINDOWS`."""
        begun: dict[tuple[str, int], list[int]] = {}
        for (what, layer, expert), windows in self._since.items():
            if windows == WINDOWS:
                begun.setdefault((what, layer), []).append(expert)
        for (what, layer), experts in begun.items():
            listed = f"expert {experts[0]}" if len(experts) == 1 else f"experts {', '.join(map(str, experts))}"
            logging.warning(
                "Step %d: MoE layer %d: %s %s in the last %d logged windows", step, layer, listed, what, WINDOWS
            )
