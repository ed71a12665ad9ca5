"""Noisy top-k gating: trained noise on the logits, and with it a load that has a gradient."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.scipy.special import ndtr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.router import Router, columns, draw_per_group, project, second_keys
from moe_jax.moe.routing import Choices, pick
from moe_jax.parallel.sharding import param

SMALLEST_DEVIATION = 1e-6  # softplus underflows, and the smooth load divides by it


class NoisyTopK(Router):
    """H(x) = x W + normal noise * softplus(x W_noise); the K largest are kept, gates are the softmax over them.

    W_noise starts at zero, as in the paper, and W like that of any other router (the paper's starts at zero too). Noise
    is drawn where there are keys (training). The logits, for the z-loss, are those without noise; the probabilities are
    the softmax of H. A temperature divides x W, not the noise.
    """

    paper: ClassVar[str] = "Shazeer et al. 2017, equations 3 to 5; smooth load: appendix A, equations 8 to 10"
    least_top_k: ClassVar[int] = 2  # a single gate is the constant 1
    options: ClassVar[frozenset[str]] = Router.options | {"load_loss"}

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        super().__init__(d_model, moe, init, rngs, dtype)
        self.noise = param(rngs, (d_model, columns(moe)), ("embed", None), nnx.initializers.zeros, dtype)

    @classmethod
    def check(cls, moe, name_of):
        """See `Router.check`."""
        if moe.top_k >= moe.num_experts:
            top_k, num_experts = name_of["top_k"], name_of["num_experts"]
            raise ConfigError(
                f"{top_k}={moe.top_k} with {name_of['router']}='noisy_top_k' and {num_experts}={moe.num_experts}: its "
                f"load needs an expert that is not chosen, raise {num_experts} or lower {top_k}"
            )

    @classmethod
    def matmul_params(cls, d_model, moe):
        """See `Router.matmul_params`."""
        return 2 * super().matmul_params(d_model, moe)

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        deviation = jnp.maximum(jax.nn.softplus(project(x, self.noise)), SMALLEST_DEVIATION)
        noisy = logits
        if context.keys is not None:
            draw = draw_per_group(jax.random.normal, second_keys(context.keys), logits.shape[1:], logits.dtype)
            noisy = logits + draw * deviation
        _, best = lax.top_k(lax.stop_gradient(noisy), self.moe.top_k + 1)
        expert = best[..., :-1]
        gate = jax.nn.softmax(pick(noisy, expert))
        load = smooth_load(logits, noisy, deviation, best)
        return Choices(expert, gate, jax.nn.softmax(noisy), smooth_load=load)


def smooth_load(
    logits: Float[Array, "G T E"],
    noisy: Float[Array, "G T E"],
    deviation: Float[Array, "G T E"],
    best: Int[Array, "G T J"],
) -> Float[Array, "G T E"]:
    """P(x, i): the probability that expert i is among the K when its own noise is drawn anew (equations 8 and 9).

    That takes exceeding the K-th largest of the others' H. `best`: the K + 1 largest of `noisy`, in order.
    """
    values = pick(noisy, best)
    k = best.shape[-1] - 1
    chosen = jnp.any(jax.nn.one_hot(best[..., :k], logits.shape[-1], dtype=bool), axis=-2)
    rival = jnp.where(chosen, values[..., k:], values[..., k - 1 : k])
    return _normal_cdf((logits - rival) / deviation)


@jax.custom_jvp
def _normal_cdf(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Phi(z). Its derivative is given since JAX's own, of erf, cannot be traced inside `shard_map` (jax 0.12)."""
    return ndtr(z)


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _normal_cdf(z), jnp.exp(-jnp.square(z) / 2) * (dz / math.sqrt(2 * math.pi))
