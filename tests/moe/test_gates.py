"""Gates on the way in and around the experts, which a router may give, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from finite_differences import gradients
from flax import nnx
from one_device import make_layer, on_one_device
from softmax import softmax

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.router import CARRY_SLOTS
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routers.top_k import TopK
from moe_jax.moe.routing import pick

G, T, D, F, E, K, C = 2, 6, 3, 4, 3, 2, 3


class Gated(TopK):
    """Top-k whose choices also have a sigmoid of their logit on the way in, and a token its largest logit around."""

    def choose(self, x, logits, context):
        choices = super().choose(x, logits, context)
        input_gate = jax.nn.sigmoid(pick(logits, choices.expert))
        return choices._replace(input_gate=input_gate, identity_gate=jnp.max(logits, axis=-1))


def silu(x):
    return x / (1 + np.exp(-x))


def oracle(x, valid, router, gate, up, down):
    """The experts are not linear, so that a gate before them is not one behind them."""
    y, dropped = np.zeros_like(x), 0
    for g in range(G):
        used = [0] * E
        for t in range(T):
            logits = x[g, t] @ router
            y[g, t] = logits.max() * x[g, t]
            if not valid[g, t]:
                continue
            for e in sorted(range(E), key=lambda e: -logits[e])[:K]:
                if used[e] == C:
                    dropped += 1
                    continue
                used[e] += 1
                inside = x[g, t] / (1 + np.exp(-logits[e]))
                y[g, t] += softmax(logits)[e] * (silu(inside @ gate[e]) * (inside @ up[e])) @ down[e]
    return y, dropped


def test_input_and_identity_gates_with_every_dispatcher(monkeypatch):
    monkeypatch.setitem(ROUTERS, "gated", Gated)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, dy = rng.normal(size=(2, G, T, D))
        valid = rng.random((G, T)) > 0.2
        outputs = {}
        for dispatcher in CARRY_SLOTS:
            moe = MoEConfig(
                num_experts=E, router="gated", top_k=K, d_ff=F, activation="swiglu", group_size=T,
                capacity_factor=0.75, dispatcher=dispatcher,
            )  # fmt: skip
            layer = make_layer(moe, D)
            graphdef, state = nnx.split(layer)

            def loss(state, x, graphdef=graphdef):
                context = plain_context((G, T))._replace(valid=jnp.asarray(valid))
                y, sums = nnx.merge(graphdef, state)(x, context, True)
                return jnp.sum(y * dy), (y, sums)

            run = jax.jit(jax.value_and_grad(on_one_device(loss), argnums=(0, 1), has_aux=True))
            (_, (y, sums)), (grads, dx) = run(state, x)
            by_name = {name: grads["experts"][name] for name in ("gate", "up", "down")}
            outputs[dispatcher] = y, sums, {"x": dx, "router": grads["router"]["weight"], **by_name}
        experts = {name: getattr(layer.experts, name) for name in ("gate", "up", "down")}
        arrays = {name: np.array(w[...]) for name, w in {"router": layer.router.weight, **experts}.items()}
        expected, dropped = oracle(x, valid, **arrays)
        by_loops = lambda x, **arrays: np.sum(oracle(x, valid, **arrays)[0] * dy)
        slopes = gradients(by_loops, {"x": x, **arrays})
        assert dropped > 0 and all(np.max(np.abs(slope)) > 1e-3 for slope in slopes.values())
        for y, sums, actual in outputs.values():
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
            assert sums["dropped_by_rank"].sum() == dropped
            for name, slope in slopes.items():
                np.testing.assert_allclose(actual[name][...], slope, rtol=1e-6, atol=1e-8, err_msg=name)
