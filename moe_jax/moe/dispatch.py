"""Dispatchers: how tokens move into expert buffers and back, by a plan.

A dispatcher is two verbs, `dispatch` and `combine`. All pass the same tests; add one by writing it and naming it in
`DISPATCHERS`.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.moe.plan import Plan


class Dispatcher(Protocol):
    """The contract."""

    @staticmethod
    def dispatch(x: Float[Array, "G T D"], plan: Plan) -> Float[Array, "G S D"]:
        """Each slot's token; zeros in empty slots."""

    @staticmethod
    def combine(out: Float[Array, "G S D"], gate: Float[Array, "G T K"], plan: Plan) -> Float[Array, "G T D"]:
        """Each token's sum of its slots' rows times its gates, in the gates' precision; zeros if it has none."""


class Einsum:
    """Products with one-hot matrices of size T x S (GShard, Mesh TensorFlow): the oracle to read and to test against.

    Its matmuls cost as much as experts of hidden size C * E / 2 would: several times the experts' own for many experts.
    """

    @staticmethod
    def dispatch(x, plan):
        """See `Dispatcher.dispatch`."""
        one_hot = _slots_of_tokens(plan, x.dtype)
        return jnp.einsum("gtks,gtd->gsd", one_hot, x, precision=jax.lax.Precision.HIGHEST)

    @staticmethod
    def combine(out, gate, plan):
        """See `Dispatcher.combine`."""
        weights = _slots_of_tokens(plan, gate.dtype) * gate[..., None]
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("gtks,gsd->gtd", weights, out.astype(gate.dtype), precision=highest).astype(out.dtype)


class Capacity:
    """Gathers in both directions and in both passes: nothing larger than the buffers themselves exists."""

    @staticmethod
    def dispatch(x, plan):
        """See `Dispatcher.dispatch`."""
        k = plan.slot_of_choice.shape[-1]
        tokens = x.shape[1]
        token_in_slot = jnp.where(plan.choice_in_slot < tokens * k, plan.choice_in_slot // k, tokens)
        return jax.vmap(permute)(x, token_in_slot, plan.slot_of_choice)

    @staticmethod
    def combine(out, gate, plan):
        """See `Dispatcher.combine`."""
        groups, tokens, k = gate.shape
        slot = plan.slot_of_choice.reshape(groups, tokens * k)
        chosen = jax.vmap(permute)(out, slot, plan.choice_in_slot[..., None])
        chosen = chosen.reshape(groups, tokens, k, -1).astype(gate.dtype)
        return jnp.sum(chosen * gate[..., None], axis=2).astype(out.dtype)


@jax.custom_vjp
def permute(x: Float[Array, "R D"], source: Int[Array, "S"], targets: Int[Array, "R K"]) -> Float[Array, "S D"]:
    """Row s is x[source[s]], or zeros where source[s] is past the end.

    `targets` is the inverse: the rows of the result that row r of x went to (past the end: none). With it the gradient
    is a gather too, where that of plain indexing is a scatter-add: slow everywhere, and without a fixed order of sums
    on GPU.
    """
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _permute_forward(x, source, targets):
    return permute(x, source, targets), targets


def _permute_backward(targets, g):
    return jnp.sum(jnp.take(g, targets, axis=0, mode="fill", fill_value=0), axis=1), None, None


permute.defvjp(_permute_forward, _permute_backward)


def _slots_of_tokens(plan: Plan, dtype) -> Float[Array, "G T K S"]:
    return jax.nn.one_hot(plan.slot_of_choice, plan.choice_in_slot.shape[-1], dtype=dtype)


DISPATCHERS: dict[str, type[Dispatcher]] = {"einsum": Einsum, "capacity": Capacity}
