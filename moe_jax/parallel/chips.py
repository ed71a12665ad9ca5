"""Accelerators: what one does a second, holds, draws and costs. Trainer and audit share the table.

Every figure is a constant that the audit lets its user override, prices above all. Sources: the vendors' data sheets
and TPU pages; "How to Scale Your Model" (Austin et al. 2025), chapters "TPUs" and "GPUs", for links; public list prices
of one chip-hour on demand, which move. Add a chip by adding its row.
"""

import re
from typing import NamedTuple


class Chip(NamedTuple):
    """One `jax.Device`: a whole chip, or half of a TPU v7, which shows two devices."""

    flops: float  # dense bfloat16 FLOP/s
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes a second
    link: float  # bytes a second, one way: of the way into an NVLink domain, or of one link of a torus
    network: float = 50e9  # bytes a second, one way, of the network behind the domain or slice
    dims: int = 0  # of the torus; 0: a domain whose devices are all connected to a switch
    clock: float = 0.0  # hertz, in which XLA for TPU counts its cycles: the matrix units' FLOPs give it
    price: float = 0.0  # $ an hour; 0: none found
    watts: float = 0.0  # of the chip, the most it draws; 0: none published

    @property
    def wraps_at(self) -> tuple[int, int]:
        """A dimension of a slice closes to a ring where it is at least the first long and a multiple of the second."""
        return (4, 4) if self.dims == 3 else (16, 16)


GIB = 1 << 30
CHIPS = {
    "A100": Chip(312e12, 80e9, 2.04e12, 300e9, 25e9, price=5.0, watts=400),
    "A800": Chip(312e12, 80e9, 2.04e12, 200e9, 25e9, watts=400),
    "H20": Chip(148e12, 96e9, 4.0e12, 450e9, watts=400),
    "H100": Chip(990e12, 80e9, 3.35e12, 450e9, price=12.29, watts=700),
    "H100 PCIe": Chip(756e12, 80e9, 2.0e12, 64e9, watts=350),
    "H100 NVL": Chip(835e12, 94e9, 3.9e12, 300e9, watts=400),
    "H800": Chip(990e12, 80e9, 3.35e12, 200e9, watts=700),
    "H200": Chip(990e12, 141e9, 4.8e12, 450e9, price=10.0, watts=700),
    "H200 NVL": Chip(835e12, 141e9, 4.8e12, 450e9, watts=600),
    "GH200": Chip(990e12, 96e9, 4.0e12, 450e9, watts=1000),
    "B200": Chip(2250e12, 180e9, 8.0e12, 900e9, watts=1000),
    "GB200": Chip(2500e12, 186e9, 8.0e12, 900e9, watts=1200),
    "GB300": Chip(2500e12, 288e9, 8.0e12, 900e9, 100e9, watts=1400),
    "TPU v4": Chip(275e12, 32 * GIB, 1.2e12, 45e9, 6.25e9, 3, 1.05e9, 3.22, 192),
    "TPU v4 lite": Chip(138e12, 8 * GIB, 0.61e12, 50e9, 3.1e9, 2, 1.05e9, watts=175),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 0.81e12, 45e9, 3.1e9, 2, 1.5e9, 1.20),
    "TPU v5": Chip(459e12, 95 * GIB, 2.77e12, 90e9, 6.25e9, 3, 1.75e9, 4.20),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1.64e12, 90e9, 12.5e9, 2, 1.75e9, 2.70),
    "TPU7x": Chip(2307e12 / 2, 96 * GIB, 7.38e12 / 2, 90e9 / 2, 6.25e9, 3, 2.2e9, 6.0),
}
CHIPS |= {"TPU v5e": CHIPS["TPU v5 lite"], "TPU v5p": CHIPS["TPU v5"], "TPU v6e": CHIPS["TPU v6 lite"]}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device, or None for one that is not known (a CPU, for instance).

    Args:
        device_kind: `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite". The longest name of
            the table that it contains, as whole words, decides.
    """
    names = [name for name in CHIPS if re.search(rf"\b{name}\b", device_kind, re.IGNORECASE)]
    return CHIPS[max(names, key=len)] if names else None
