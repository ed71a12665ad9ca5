"""Quantised tensors as the numbers that they stand for."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moe_jax.config.rules import ConfigError
from moe_jax.interop.tensors import Stored, Tensor

BLOCK = 128  # side of the squares that share a scale in DeepSeek-V3's block-FP8
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FP4_PER_SCALE = 32  # numbers of MXFP4 that share a scale
EXPONENT_BIAS = 127  # of MXFP4's scales, which are powers of two
SCALE_OF_FP8, BLOCKS_OF_FP4, SCALES_OF_FP4 = "_scale_inv", "_blocks", "_scales"


class BlockFP8(NamedTuple):
    """[out, in] numbers in FP8 (E4M3), each square of 128 x 128 with a scale (DeepSeek-V3, section 3.3)."""

    weight: Stored
    scales: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return self.weight.shape

    @property
    def dtype(self) -> str:
        """What they are read as."""
        return "F32"

    def read(self, first: int | None = None) -> np.ndarray:
        """See `Tensor.read`."""
        scales = self.scales.read().astype(np.float32)
        rows, columns = self.weight.shape
        spread = np.repeat(np.repeat(scales, BLOCK, axis=0)[:rows], BLOCK, axis=1)[:, :columns]
        values = self.weight.read().astype(np.float32) * spread
        return values if first is None else values[first]


class MXFP4(NamedTuple):
    """[E, in, out] numbers in four bits, 32 of a column with a power of two (Open Compute Project, MX 1.0; GPT-OSS).

    The file has [E, out, in / 32, 16] bytes of two numbers each, the first in the lower bits, and [E, out, in / 32]
    exponents.
    """

    blocks: Stored
    scales: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        experts, out, groups, _ = self.blocks.shape
        return experts, groups * FP4_PER_SCALE, out

    @property
    def dtype(self) -> str:
        """What they are read as."""
        return "F32"

    def read(self, first: int | None = None) -> np.ndarray:
        """See `Tensor.read`."""
        blocks = self.blocks.read(first)
        exponents = self.scales.read(first).astype(np.int32) - EXPONENT_BIAS
        pairs = np.stack([FP4[blocks & 15], FP4[blocks >> 4]], axis=-1).reshape(*blocks.shape[:-1], FP4_PER_SCALE)
        values = np.ldexp(pairs, exponents[..., None])
        return values.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def dequantized(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors by the names that a model without quantisation has for them.

    Raises ConfigError for scales that do not fit, or that are missing.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE_OF_FP8) and name.removesuffix(SCALE_OF_FP8) in stored:
            continue
        if name.endswith(SCALES_OF_FP4) and name.removesuffix(SCALES_OF_FP4) + BLOCKS_OF_FP4 in stored:
            continue
        if tensor.dtype == "F8_E4M3":
            tensors[name] = _block_fp8(name, tensor, stored)
        elif name.endswith(BLOCKS_OF_FP4) and tensor.dtype == "U8":
            base = name.removesuffix(BLOCKS_OF_FP4)
            tensors[base] = _mxfp4(name, tensor, stored.get(base + SCALES_OF_FP4))
        elif tensor.dtype == "U8":
            raise ConfigError(f"tensor {name} has type U8, and is in no format that is read here (MXFP4 is)")
        else:
            tensors[name] = tensor
    return tensors


def _block_fp8(name: str, weight: Stored, stored: Mapping[str, Stored]) -> BlockFP8:
    scales = stored.get(name + SCALE_OF_FP8)
    needed = tuple(-(-size // BLOCK) for size in weight.shape)
    if scales is None or len(weight.shape) != 2 or scales.shape != needed:
        there = "none is there" if scales is None else f"{name + SCALE_OF_FP8} has {scales.shape}"
        raise ConfigError(
            f"tensor {name} is FP8 of shape {weight.shape}, which needs scales of shape {needed} (squares of {BLOCK}): "
            f"{there}"
        )
    return BlockFP8(weight, scales)


def _mxfp4(name: str, blocks: Stored, scales: Stored | None) -> MXFP4:
    if scales is None or len(blocks.shape) != 4 or blocks.shape[-1] != 16 or scales.shape != blocks.shape[:3]:
        there = "none are there" if scales is None else f"there are {scales.shape}"
        raise ConfigError(
            f"tensor {name} of shape {blocks.shape} should be MXFP4, [E, out, in / 32, 16] bytes with scales of shape "
            f"{blocks.shape[:3]}: {there}"
        )
    return MXFP4(blocks, scales)
