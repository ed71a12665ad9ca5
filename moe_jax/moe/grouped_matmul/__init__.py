"""The grouped matmul: rows that are sorted by group, each group times a matrix of its own.

Add an implementation by writing it in a file of this package, and naming it in `IMPLEMENTATIONS`.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from moe_jax.config.rules import ConfigError
from moe_jax.moe.grouped_matmul.implementation import Implementation
from moe_jax.moe.grouped_matmul.megablox import INTERPRETED, MEGABLOX
from moe_jax.moe.grouped_matmul.mosaic_gpu import MOSAIC_GPU
from moe_jax.moe.grouped_matmul.padded import PADDED
from moe_jax.moe.grouped_matmul.ragged_dot import RAGGED_DOT
from moe_jax.moe.grouped_matmul.tokamax import TOKAMAX_GPU, TOKAMAX_TPU
from moe_jax.parallel.collectives import varying_alike

IMPLEMENTATIONS: dict[str, Implementation] = {
    "padded": PADDED,
    "ragged_dot": RAGGED_DOT,
    "megablox": MEGABLOX,
    "megablox_interpreted": INTERPRETED,
    "mosaic_gpu": MOSAIC_GPU,
    "tokamax_tpu": TOKAMAX_TPU,
    "tokamax_gpu": TOKAMAX_GPU,
}
DEFAULTS = {"tpu": "megablox", "gpu": "mosaic_gpu"}  # by `jax.Device.platform`; where it does not fit, `padded`


def grouped_matmul(
    rows: Float[Array, "M K"], weights: Float[Array, "G K N"], sizes: Int[Array, "G"], implementation: str
) -> Float[Array, "M N"]:
    """Each row times the matrix of its group: the first sizes[0] rows times weights[0], and so on; zeros for the rows
    past the last group.

    Both gradients are grouped too. `sizes` are int32 and add up to at most M; groups may be empty.
    """
    rows, weights, sizes = varying_alike(rows, weights, sizes)
    return _grouped_matmul(implementation, rows, weights, sizes)


def implementation_of(name: str, platform: str, kind: str, dtype: str) -> str:
    """The implementation that `moe.grouped_matmul` means on a device, `jax.Device.platform` and `device_kind`: with
    "auto" the default of the platform, or `padded` where that is for other devices or other types.

    Raises ConfigError for one that does not run on the device, is not installed, or does not multiply numbers of the
    type.
    """
    if name == "auto":
        default = DEFAULTS.get(platform, "padded")
        return default if IMPLEMENTATIONS[default].fits(platform, kind, dtype) else "padded"
    one = IMPLEMENTATIONS[name]
    fitting = ", ".join(repr(known) for known, other in IMPLEMENTATIONS.items() if other.fits(platform, kind, dtype))
    if not one.runs_on(platform, kind):
        raise ConfigError(
            f"moe.grouped_matmul={name!r} runs on {one.where} and this is a {kind} ({platform}): "
            f"use one of 'auto', {fitting}"
        )
    if one.package and importlib.util.find_spec(one.package) is None:
        raise ConfigError(
            f"moe.grouped_matmul={name!r} needs the package {one.package}, which is not installed: pip install "
            f"{one.package}, or use one of 'auto', {fitting}"
        )
    if not one.fits(platform, kind, dtype):
        raise ConfigError(
            f"moe.grouped_matmul={name!r} multiplies {' and '.join(one.dtypes)}, not model.dtype={dtype!r}: use one of "
            f"'auto', {fitting}"
        )
    return name


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped_matmul(implementation: str, rows: Array, weights: Array, sizes: Array) -> Array:
    y = _unchecked(implementation, "multiply", rows, weights, sizes, transpose=False)
    return _without_the_rest(y, sizes)


def _forward(implementation, rows, weights, sizes):
    return _grouped_matmul(implementation, rows, weights, sizes), (rows, weights, sizes)


def _backward(implementation, residuals, grads):
    rows, weights, sizes = residuals
    d_rows = _unchecked(implementation, "multiply", grads, weights, sizes, transpose=True)
    d_weights = _unchecked(implementation, "outer", rows, grads, sizes)
    return _without_the_rest(d_rows, sizes), d_weights, None


_grouped_matmul.defvjp(_forward, _backward)


def _without_the_rest(y: Float[Array, "M N"], sizes: Int[Array, "G"]) -> Float[Array, "M N"]:
    """`y` with zeros past the last group, where most kernels leave what was in memory."""
    return jnp.where(jnp.arange(y.shape[0])[:, None] < jnp.sum(sizes), y, 0)


def _unchecked(implementation: str, part: str, *operands: Array, **settings: bool) -> Array:
    """A part of an implementation, whose kernels cannot say along which axes of the mesh their results vary: as the
    operands do, which all vary alike.
    """
    function = functools.partial(getattr(IMPLEMENTATIONS[implementation], part), **settings)
    axes = tuple(jax.typeof(operands[0]).manual_axis_type.varying)
    if not axes:
        return function(*operands)
    whole = PartitionSpec()
    inner = jax.shard_map(
        function, in_specs=(whole,) * len(operands), out_specs=whole, axis_names=frozenset(), check_vma=False
    )
    return lax.pcast(inner(*operands), axes, to="varying")
