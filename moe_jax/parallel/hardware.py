"""Peak speed of accelerators, the denominator of model FLOPs utilisation, and the memory of devices."""

import math
import os
import re

import jax

# Dense bfloat16 FLOP/s of one jax.Device by its model's name, from the vendors' data sheets (sparsity not counted).
PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "H20": 148e12,
    "H100": 990e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 990e12,
    "H200": 990e12,
    "H200 NVL": 835e12,
    "GH200": 990e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
}


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, or None for one that is not known (a CPU, for instance).

    Args:
        device_kind: `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite". The longest name of
            the table that it contains, as whole words, decides.
    """
    names = [name for name in PEAK_BF16_FLOPS if re.search(rf"\b{name}\b", device_kind, re.IGNORECASE)]
    return PEAK_BF16_FLOPS[max(names, key=len)] if names else None


def total_memory() -> float:
    """Bytes of all devices of the run together; on CPUs, those of this machine. Infinite where nobody says."""
    if jax.default_backend() == "cpu":
        try:
            return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) * jax.process_count()
        except (OSError, ValueError):
            return math.inf
    stats = [device.memory_stats() for device in jax.local_devices()]
    limits = [one["bytes_limit"] for one in stats if one and "bytes_limit" in one]
    return float(sum(limits) * jax.process_count()) if limits else math.inf
