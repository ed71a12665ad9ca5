"""Seconds that a collective takes on the wires between the devices of its replica group, by link.

A torus (TPU) has one link each way along each of its dimensions; a domain of GPUs is connected to a switch (NVLink);
domains and slices are connected by a network, of which every device has its own part. The formulas are those of "How
to Scale Your Model" (Austin et al. 2025): rings for what is gathered, scattered and reduced, the bisection for what is
exchanged. Which link a group uses is read from where its devices are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_jax.audit.program import Collective
from moe_jax.parallel.chips import Chip

TORUS, SWITCH, NETWORK = "torus", "NVLink", "network"


@dataclasses.dataclass(frozen=True)
class Wires:
    """How the devices of a target are connected; the fractions of the peak are what collectives reach."""

    chip: Chip
    devices: Sequence[Any]  # in the order of the mesh; of a TPU with `coords`
    domain: int  # GPUs that a switch connects
    # Reached of a link's peak: NVLink of H100 rarely passes 370 of 450 GB/s; DeepEP sends 50 of 50 GB/s over
    # InfiniBand. A torus, and other networks, are assumed.
    reached: tuple[tuple[str, float], ...] = ((TORUS, 0.9), (SWITCH, 0.82), (NETWORK, 0.9))
    # Seconds that a collective takes without a byte, assumed: a kernel and its synchronisation, or a hop.
    latency: tuple[tuple[str, float], ...] = ((TORUS, 1e-6), (SWITCH, 1e-5), (NETWORK, 2e-5))
    # XLA's ragged all-to-all between eight B200 was measured at some 2% of NVLink (openxla/xla issue 33386).
    ragged_on_switch: float = 0.02

    def seconds(self, collective: Collective) -> dict[str, float]:
        """Of one run of the collective, by link; links work side by side, so that the longest counts."""
        group = [self.devices[place] for place in collective.group]
        if len(group) < 2:
            return {}
        times = 2.0 if collective.kind == "all-reduce" else 1.0
        exchanged = "all-to-all" in collective.kind
        if self.chip.dims:
            parts = [getattr(device, "slice_index", 0) or 0 for device in group]
            inside = {
                TORUS: self._torus(collective, [d for d, part in zip(group, parts, strict=True) if part == parts[0]])
            }
        else:
            parts = [place // self.domain for place in collective.group]
            inside = {SWITCH: self._switch(collective, parts.count(parts[0]))}
        number, together = len(set(parts)), parts.count(parts[0])
        across = collective.bytes * (number - 1) / number / self.chip.network / (1 if exchanged else together)
        reached, latency = dict(self.reached), dict(self.latency)
        found = {**inside, NETWORK: across}
        return {link: times * spent / reached[link] + latency[link] for link, spent in found.items() if spent}

    def _switch(self, collective: Collective, together: int) -> float:
        size = collective.replica_group_size
        fraction = self.ragged_on_switch if collective.kind == "ragged-all-to-all" else 1.0
        return collective.bytes * (together - 1) / size / self.chip.link / fraction

    def _torus(self, collective: Collective, group: Sequence[Any]) -> float:
        """Without the reach of the wires: a dimension that is not closed to a ring has half of its bandwidth."""
        spans = self._spans(group)
        if not spans:
            return (
                0.0 if len(group) < 2 else collective.bytes / (2 * self.chip.dims * self.chip.link)
            )  # one chip's halves
        if "all-to-all" in collective.kind:
            return max(collective.bytes * length / (8 if ring else 4) for length, ring in spans) / self.chip.link
        if collective.kind == "collective-permute":
            return collective.bytes / self.chip.link
        ways = sum(2 if ring else 1 for _, ring in spans)
        return collective.bytes * (len(group) - 1) / len(group) / (ways * self.chip.link)

    def _spans(self, group: Sequence[Any]) -> list[tuple[int, bool]]:
        """The dimensions of the torus that a group reaches over: how many places, and whether they close to a ring."""
        least, multiple = self.chip.wraps_at
        whole = self._lengths
        spans = []
        for dim in range(len(whole)):
            length = len({device.coords[dim] for device in group})
            if length > 1:
                ring = length == whole[dim] and length >= least and length % multiple == 0
                spans.append((length, ring))
        return spans

    @property
    def _lengths(self) -> list[int]:
        return (np.max([device.coords for device in self.devices], axis=0) + 1).tolist()
