"""Describes devices that are not there, to compile for them: "v5p:4x4x4", "4*v5p:8x8x8", "h100:8", "h100:2x8".

TPU names and topologies are libtpu's, in chips; 4* joins four slices over the network. For GPUs the last number counts
those of one NVLink domain (a host, or a rack of GB200) and the one before it the domains. The compiled program depends
on the chip and on the mesh, not on how GPUs are wired.

Add a GPU by adding its row to `GPUS`, a TPU by its name to `TPUS`; both need a row in `moe_jax.parallel.chips` too.
"""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from moe_jax.parallel.chips import CHIPS, Chip


class Gpu(NamedTuple):
    """What XLA wants to know about a GPU, from NVIDIA's data sheets and from what the driver reports."""

    name: str  # as the driver reports it
    capability: int  # major compute capability
    cores: int  # streaming multiprocessors
    fpus_per_core: int
    clock_ghz: float
    memory: int  # bytes
    bandwidth: int  # bytes a second
    l2_cache: int  # bytes
    shared_per_core: int  # bytes
    per_host: int  # GPUs of a host
    per_domain: int  # at most so many GPUs are connected over NVLink


GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85_100_068_864, 2_039_040_000_000, 41_943_040, 167_936, 8, 8
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472, 8, 8
    ),
    "h200": Gpu(
        "NVIDIA H200 141GB HBM3e", 9, 132, 128, 1.98, 151_397_597_184, 4_800_000_000_000, 52_428_800, 233_472, 8, 8
    ),
    "h800": Gpu("NVIDIA H800", 9, 132, 128, 1.98, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472, 8, 8),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 1.965, 191_514_411_008, 7_672_320_000_000, 132_644_864, 233_472, 8, 8),
    "gb200": Gpu("NVIDIA GB200", 10, 152, 128, 2.062, 197_897_748_480, 7_928_064_000_000, 135_528_448, 233_472, 4, 72),
    "gb300": Gpu("NVIDIA GB300", 10, 152, 128, 2.062, 306_000_000_000, 7_928_064_000_000, 135_528_448, 233_472, 4, 72),
}
TPUS = {  # libtpu's name, the smallest topology (one host), and the chip's name in `CHIPS`
    "v4": ("v4", "2x2x1", "TPU v4"),
    "v5e": ("v5e", "2x2", "TPU v5 lite"),
    "v5p": ("v5p", "2x2x1", "TPU v5"),
    "v6e": ("v6e", "2x2", "TPU v6 lite"),
    "v7": ("tpu7x", "2x2x1", "TPU7x"),
    "tpu7x": ("tpu7x", "2x2x1", "TPU7x"),
}

# Without these settings libtpu asks Google's metadata server where it runs, and refuses a second process.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Target(NamedTuple):
    """Devices to compile for."""

    name: str
    devices: list[jax.Device]  # in the order of the topology
    chip: Chip
    domain: int  # GPUs that a switch connects


def devices(target: str) -> list[jax.Device]:
    """The devices of `target_of`."""
    return target_of(target).devices


def target_of(target: str) -> Target:
    """Devices that one can compile for but not run on, in the order of the topology, and what they are.

    Unless the user chose platforms, JAX runs on CPU from here on. Variables that the environment already has stay.

    Raises ValueError (one line) for a name or topology that does not exist, and if the compiler is not installed.
    """
    chip, colon, topology = target.partition(":")
    slices, star, chip = chip.rpartition("*")
    if chip not in GPUS and chip not in TPUS:
        raise ValueError(f"target={target}: no chip named {chip!r}: use one of {', '.join([*TPUS, *GPUS])}")
    if not colon or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", topology):
        example = f"{chip}:{TPUS[chip][1] if chip in TPUS else '8'}"
        raise ValueError(f"target={target}: {topology!r} is not a topology: write it as in {example}")
    if star and (chip in GPUS or not re.fullmatch(r"[1-9]\d{0,3}", slices)):
        raise ValueError(f"target={target}: {slices + star!r} is no number of TPU slices: write 4*v5p:8x8x8")
    if not jax.config.values.get("jax_platforms"):
        jax.config.update("jax_platforms", "cpu")
    if chip in TPUS:
        return Target(target, _tpus(target, chip, topology, int(slices or 1)), CHIPS[TPUS[chip][2]], 1)
    sizes = [int(size) for size in topology.split("x")]
    return Target(target, _gpus(chip, topology, sizes), CHIPS[chip.upper()], sizes[-1])


def _tpus(target: str, chip: str, topology: str, slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"target={target} needs XLA for TPU: pip install 'moe_jax[aot]', or make venv-aot")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    of_slices: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    name, smallest, _ = TPUS[chip]
    try:
        return list(topologies.get_topology_desc(f"{name}:{topology}", platform="tpu", **of_slices).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"target={target} is not a topology of {chip} (one host is {smallest}): {_one_line(error)}"
        ) from None


def _gpus(chip: str, topology: str, sizes: list[int]) -> list[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_plugins.xla_cuda{major}") for major in (12, 13)):
        raise ValueError(
            f"target={chip}:{topology} needs XLA for NVIDIA: make venv-aot, or pip install 'moe_jax[cuda12]'"
        )
    gpu = GPUS[chip]
    domains, size = sizes if len(sizes) == 2 else (1, sizes[0])
    if len(sizes) > 2 or size > gpu.per_domain or (size > gpu.per_host and size % gpu.per_host):
        raise ValueError(
            f"target={chip}:{topology}: write GPUs or domains x GPUs, at most {gpu.per_domain} in one NVLink domain "
            f"and whole hosts of {gpu.per_host}"
        )
    hosts = max(1, size // gpu.per_host)
    jax.devices()  # starts the backends, since the plugin would otherwise be registered twice
    described = topologies.get_topology_desc(
        "", platform="cuda", target_config=_target_config(gpu), topology=f"{domains}x{hosts}x{size // hosts}"
    )
    return list(described.devices)


def _target_config(gpu: Gpu) -> str:
    """The text form of XLA's GpuTargetConfigProto."""
    return f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_per_core}
      shared_memory_per_block_optin: {gpu.shared_per_core - 1024}
      core_count: {gpu.cores} fpus_per_core: {gpu.fpus_per_core} clock_rate_ghz: {gpu.clock_ghz}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.l2_cache} device_memory_size: {gpu.memory}
      cuda_compute_capability {{ major: {gpu.capability} }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
    device_description_str: "{gpu.name}"
    """


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
