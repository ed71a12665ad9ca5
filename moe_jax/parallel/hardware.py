"""Peak speed of accelerators, the denominator of model FLOPs utilisation, and the memory of devices."""

import math
import os

import jax

from moe_jax.parallel.chips import chip_of


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, or None for one that is not known; see `chip_of`."""
    chip = chip_of(device_kind)
    return chip.flops if chip else None


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
