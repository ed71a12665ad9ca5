"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + alpha / r (x A) B, where W stays as it is.

A is drawn, B is zero at first, so that a model with adapters begins as the one without. The product is formed from the
tokens' side, x A and then B, and not as W + A B: the backward pass then needs no gradient of a whole W. Each expert has
a pair of its own. `moe_jax/models/adapters.py` says which matrices have one.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.config.schema import LoraConfig
from moe_jax.parallel.sharding import fan_in_init, gather

ADAPTERS = "lora"  # attribute of a module: {name of a matrix: its adapter}

Product = Callable[[Array, Array], Array]  # of rows and the matrices of their experts


class Pair(NamedTuple):
    """An adapter ready to multiply with; alpha / r is in `up`."""

    down: Float[Array, "*E D r"]  # A
    up: Float[Array, "*E r F"]  # B

    def __call__(self, x: Float[Array, "*B D"], product: Product = jnp.matmul) -> Float[Array, "*B F"]:
        """What the adapter adds to x W, by the `product` that multiplies rows with matrices."""
        return product(product(x, self.down), self.up)


class Adapter(nnx.Module):
    """A and B of one matrix, or of the stack of matrices that layers and experts are.

    Along the mesh they are cut like the matrix: A where its rows are, B where its columns are.
    """

    def __init__(self, weight: nnx.Param, lora: LoraConfig, rngs: nnx.Rngs):
        shape, axes, dtype = weight.shape, weight.axes, weight.dtype
        down, up = (*shape[:-1], lora.rank), (*shape[:-2], lora.rank, shape[-1])
        self.a = nnx.Param(fan_in_init(1.0)(rngs.params(), down, dtype), axes=(*axes[:-1], None))
        self.b = nnx.Param(jnp.zeros(up, dtype), axes=(*axes[:-2], None, axes[-1]))
        self.scale = lora.alpha / lora.rank

    def gathered(self, dtype: DTypeLike) -> Pair:
        """The parts that this device computes with."""
        return Pair(gather(self.a, dtype), gather(self.b, dtype) * jnp.asarray(self.scale, dtype))


def adapter_of(module: nnx.Module, name: str, dtype: DTypeLike) -> Pair | None:
    """The adapter of one of a module's matrices, if it has one."""
    adapters = getattr(module, ADAPTERS, None)
    return adapters[name].gathered(dtype) if adapters is not None and name in adapters else None


def project(module: nnx.Module, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    """x times one of a module's matrices, with what its adapter adds."""
    y = x @ gather(getattr(module, name), x.dtype)
    adapter = adapter_of(module, name, x.dtype)
    return y if adapter is None else y + adapter(x)


def merged(params: Mapping[Any, Any], lora: LoraConfig) -> dict[Any, Any]:
    """The weights, nested dicts of arrays, of the model without adapters that computes the same: W + alpha / r A B."""
    plain = {name: merged(value, lora) if isinstance(value, Mapping) else value for name, value in params.items()}
    for name, adapter in plain.pop(ADAPTERS, {}).items():
        plain[name] = _merge(plain[name], adapter["a"], adapter["b"], lora.alpha / lora.rank)
    return plain


@functools.partial(jax.jit, static_argnames="scale")
def _merge(weight: Array, a: Array, b: Array, scale: float) -> Array:
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return weight + jnp.asarray(scale, weight.dtype) * product
