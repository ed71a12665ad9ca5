"""What a dispatcher says about itself before anything runs is what happens when it runs."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from one_device import make_layer

from moe_jax.config import MeshConfig, MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.dispatchers import DISPATCHERS, buffers, dispatcher_of
from moe_jax.moe.dispatchers.sorted import Dropless
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh

G, T, D, E = 2, 12, 6, 4
# Router, K, capacity factor, the C of it; capacity factor and C of evaluation. Factors are nominal: 1.25 * 2 * 12 / 4
# is 7.5 slots.
ROWS = {
    "einsum": [("top_k", 2, 1.25, 8, 2.0, 12), ("switch", 1, 0.5, 2, 1.0, 3), ("expert_choice", 2, 0.5, 3, 1.0, 6)],
    "capacity": [("top_k", 2, 1.25, 8, 2.0, 12), ("switch", 1, 0.5, 2, 1.0, 3), ("expert_choice", 2, 0.5, 3, 1.0, 6)],
    "soft": [("soft", 1, 0.5, 2, 0.5, 2), ("soft", 2, 1.0, 6, 1.0, 6)],
}
CASES = [(dispatcher, *row) for dispatcher, rows in ROWS.items() for row in rows]


@pytest.mark.parametrize("name", DISPATCHERS)
def test_every_dispatcher_has_a_row(name):
    assert name in ROWS or issubclass(DISPATCHERS[name], Dropless)  # which has no slots


def test_dropless_says_that_it_drops_nothing():
    says = dispatcher_of(MoEConfig(num_experts=E, router="top_k", top_k=2, group_size=T, dispatcher="dropless"))
    assert type(says) is DISPATCHERS["dropless"]
    assert (says.capacity(), says.nominal_capacity(), says.random_drop_fraction()) == (T, T, 0)
    assert (says.experts_per_token(), says.summed_rows()) == (2, T)


def sums_over_tensor(jaxpr):
    """Shapes of everything that a program sums over the mesh axis `tensor`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum") and "tensor" in equation.params["axes"]:
            yield from (value.aval.shape for value in equation.invars)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            yield from sums_over_tensor(inner) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize(("dispatcher", "router", "top_k", "factor", "slots", "eval_factor", "eval_slots"), CASES)
def test_shapes_are_what_was_said(dispatcher, router, top_k, factor, slots, eval_factor, eval_slots, monkeypatch):
    """On two devices along `tensor`, where a sum is made; nothing is compiled."""
    moe = MoEConfig(
        num_experts=E, router=router, top_k=top_k, capacity_factor=factor, eval_capacity_factor=eval_factor, d_ff=8,
        activation="relu", group_size=T, dispatcher=dispatcher, exchange_chunks=2, balance_loss=0.0,
    )  # fmt: skip
    says = dispatcher_of(moe)
    assert type(says) is DISPATCHERS[dispatcher]
    sent = []
    monkeypatch.setattr(buffers, "to_experts", lambda chunk: sent.append(chunk.shape) or chunk)
    mesh = make_mesh(MeshConfig(tensor=2))
    graphdef, weights = nnx.split(make_layer(moe, D))
    for train, wanted in ((True, slots), (False, eval_slots)):
        sent.clear()

        def forward(weights, x, train=train):
            return nnx.merge(graphdef, weights)(x, plain_context((G, T)), train)

        program = jax.shard_map(forward, mesh=mesh, in_specs=P(), out_specs=P())
        jaxpr = jax.make_jaxpr(program)(weights, jnp.zeros((G, T, D)))
        assert says.capacity(train) == wanted
        assert says.rows(train) == E * wanted == sum(shape[1] * shape[2] for shape in sent)
        assert {(shape[0], shape[1], shape[3]) for shape in sent} == {(G, E, D)}
        assert len(sent) == 2
        if train:
            wires = list(says.wires(devices=1, groups=G, remat="none"))
            assert [wire.rows for wire in wires] == [G * shape[1] * shape[2] for shape in sent]
        assert list(sums_over_tensor(jaxpr.jaxpr)) == [(G, says.summed_rows(train), D)]
        assert says.effective_factor(train) == wanted * E / (top_k * T)
        filled = ROUTERS[router].fills_slots
        assert says.experts_per_token(train) == (Fraction(E * wanted, T) if filled else top_k)
        assert (says.random_drop_fraction(train) > 0) == (not filled and wanted < T)


@pytest.mark.parametrize(
    ("router", "experts", "null_experts", "fraction"),
    [
        ("switch", 2, 0, 1 / 12),  # two slots for three tokens: all are on one expert in 2 of 8 cases, and one drops
        ("top_k", 1, 1, 1 / 12),  # a null expert is drawn as often as another one
        ("expert_choice", 2, 0, 0),
        ("soft", 2, 0, 0),
    ],
)
def test_drops_by_hand(router, experts, null_experts, fraction):
    moe = MoEConfig(
        num_experts=experts, null_experts=null_experts, router=router, group_size=3, capacity_factor=0.6 * experts
    )  # fmt: skip
    assert dispatcher_of(moe).capacity() == 2
    assert dispatcher_of(moe).random_drop_fraction() == pytest.approx(fraction, abs=1e-12)


def test_auto_is_the_first_dispatcher_of_the_router():
    for name, router in ROUTERS.items():
        assert type(dispatcher_of(MoEConfig(num_experts=2, router=name))) is DISPATCHERS[router.dispatchers[0]]
