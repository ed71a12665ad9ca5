"""The decoder: its options agree where they must, and it is causal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import B, L, build, call, make_run, text, tokens
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe_jax.models.attention.mask import Mask
from moe_jax.models.block import by_place, in_layer_order
from moe_jax.models.norm import RMSNorm
from moe_jax.moe.context import Context
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.sharding import fan_in_init


def loss_and_gradients(run, weights, key=None):
    documents = jnp.ones((B, L), jnp.int32)

    def loss(weights):
        nll, sums = call(run, weights, "negative_log_likelihood", *text(documents, targets=tokens(1)), key, True)
        return jnp.sum(nll), sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)


def assert_close(one, other, rtol=1e-5):
    scale = lambda x: max(float(jnp.max(jnp.abs(x))), 1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale(b)), one, other)


@pytest.fixture(scope="module")
def plain():
    """Weights, a key, and what the default options make of them."""
    run, key = make_run(**{"moe.jitter": 0.1}), jax.random.key(3)
    weights = build(run)[1]
    return weights, key, loss_and_gradients(run, weights, key)


@pytest.mark.parametrize(
    "changed",
    [
        {"model.remat": "full"},
        {"model.remat": "save_exchange"},
        {"attention.chunk": 4, "model.loss_chunk": 4},
        {"moe.dispatcher": "einsum"},
    ],
    ids=str,
)
def test_what_must_not_change_the_result_does_not(changed, plain):
    weights, key, expected = plain
    actual = loss_and_gradients(make_run(**{"moe.jitter": 0.1}, **changed), weights, key)
    assert_close(actual, expected, rtol=2e-5)


def test_a_scanned_segment_equals_its_layers_one_after_another():
    """The stacked weights of the segments, taken apart and applied by hand in layer order."""
    run = make_run()
    graphdef, weights = build(run)
    documents = jnp.ones((B, L), jnp.int32)
    expected, (sums,) = jax.jit(lambda weights: call(run, weights, "hidden", *text(documents), None, True))(weights)
    decoder = nnx.merge(graphdef, weights)
    is_moe = lambda segment: [block.spec.moe is not None for block in segment.blocks]
    assert [(is_moe(s), s.repeats) for s in decoder.segments] == [([False, True], 2), ([False], 1)]

    def unrolled(weights):
        decoder = nnx.merge(graphdef, weights)
        context = Context(tokens(), documents > 0, None, jnp.int32(0))
        x, loads = decoder.embedding[...][tokens()], []
        for segment in decoder.segments:
            for repeat in range(segment.repeats):
                for block in segment.blocks:
                    block_graph, stacked = nnx.split(block)
                    layer = nnx.merge(block_graph, jax.tree.map(lambda w, repeat=repeat: w[repeat], stacked))
                    x, layer_sums, _ = layer(x, Mask(), context, True)
                    loads += [layer_sums["choices"]] if layer_sums is not None else []
        return decoder.norm(x), jnp.stack(loads)

    on_mesh = jax.shard_map(unrolled, mesh=make_mesh(run.mesh), in_specs=P(), out_specs=P())
    x, loads = jax.jit(on_mesh)(weights)
    assert_close(x, expected)
    np.testing.assert_array_equal(loads, sums["choices"])
    assert sums["choices"].shape == (2, 4)


@pytest.mark.parametrize("changed", [{}, {"model.tie_embeddings": True}, {"moe.num_experts": 0}], ids=str)
def test_a_later_token_does_not_change_an_earlier_output(changed):
    run = make_run(**changed, **{"moe.capacity_factor": 0.5})
    weights = build(run)[1]
    documents = jnp.ones((B, L), jnp.int32)
    other = tokens().at[:, L // 2 :].set(tokens(5)[:, L // 2 :])
    hidden = jax.jit(lambda weights, inputs: call(run, weights, "hidden", *text(documents, inputs), None, True)[0])
    y, y_other = hidden(weights, tokens()), hidden(weights, other)
    np.testing.assert_array_equal(y[:, : L // 2], y_other[:, : L // 2])
    assert np.all(np.any(y[:, L // 2 :] != y_other[:, L // 2 :], axis=-1))


def test_masked_documents_make_a_packed_row_equal_to_its_documents_alone():
    """With slots for all, a document's output does not depend on its neighbours in the row."""
    run = make_run(**{"data.mask_documents": True, "moe.capacity_factor": 4.0})
    weights = build(run)[1]
    documents = jnp.asarray([[1] * 6 + [2] * 10, [1] * 16], jnp.int32)
    hidden = jax.jit(lambda weights, inputs: call(run, weights, "hidden", *text(documents, inputs), None, True)[0])
    changed = tokens().at[0, :6].set(tokens(5)[0, :6])
    y, y_changed = hidden(weights, tokens()), hidden(weights, changed)
    np.testing.assert_allclose(y[0, 6:], y_changed[0, 6:], rtol=1e-5, atol=1e-6)
    assert np.any(y[0, :6] != y_changed[0, :6])


def test_tied_embeddings_serve_as_the_output_head():
    run = make_run(**{"model.tie_embeddings": True})
    weights = build(run)[1]
    documents = jnp.ones((B, L), jnp.int32)
    x, _ = call(run, weights, "hidden", *text(documents), None, False)
    nll, _ = call(run, weights, "negative_log_likelihood", *text(documents, targets=tokens(1)), None, False)
    logits = x @ weights["embedding"][...].T
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens(1)[..., None], axis=-1)
    np.testing.assert_allclose(nll, -picked.sum((1, 2)), rtol=1e-5)
    assert "head" not in weights


def test_bfloat16_stays_near_float32():
    run = make_run(**{"moe.capacity_factor": 4.0})
    weights = build(run)[1]
    (exact, _), _ = loss_and_gradients(run, weights)
    (rounded, _), grads = loss_and_gradients(
        dataclasses.replace(run, model=dataclasses.replace(run.model, dtype="bfloat16")), weights
    )
    np.testing.assert_allclose(rounded, exact, rtol=5e-3)
    assert rounded != exact
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def test_initial_weights_have_the_variance_of_their_fan_in_for_every_expert():
    draw = fan_in_init(0.1)(jax.random.key(0), (4, 256, 300), jnp.float32)
    np.testing.assert_allclose(np.var(draw, axis=(1, 2)), 0.1 / 256, rtol=0.05)
    assert np.max(np.abs(draw)) < 2.3 * (0.1 / 256) ** 0.5  # truncated at two standard deviations of the parent normal
    assert len(np.unique(draw[:, 0, 0])) == 4


@pytest.mark.parametrize("init_scale", [0.1, 1.0])
def test_a_built_model_has_weights_of_the_variance_asked_for(init_scale):
    run = make_run(**{"model.init_scale": init_scale, "model.d_model": 64, "moe.num_experts": 0})
    q = build(run)[1]["segments"][0]["blocks"][0]["attention"]["q"][...]
    assert q.shape == (5, 64, 64)
    np.testing.assert_allclose(np.var(q, axis=(1, 2)), init_scale / 64, rtol=0.1)


def test_norm_by_hand():
    norm = RMSNorm(2, 3.5, nnx.Rngs(params=0), jnp.float32)
    norm.scale[...] = jnp.array([1.0, 2.0])
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])  # mean square 12.5, and 12.5 + 3.5 = 16
    np.testing.assert_allclose(norm(x), [[3 / 4, 2 * 4 / 4], [0, 0]], rtol=1e-6)
    jacobian = jax.jacobian(norm)(jnp.zeros(2))
    np.testing.assert_allclose(jacobian, np.diag([1.0, 2.0]) / 3.5**0.5, rtol=1e-6)


def test_positions_turn_by_the_base_that_the_model_is_given():
    documents = jnp.ones((B, L), jnp.int32)
    outputs, weights = [], None
    for theta in (10_000.0, 100.0):
        run = make_run(**{"model.num_layers": 1, "moe.num_experts": 0, "attention.rope_theta": theta})
        weights = build(run)[1] if weights is None else weights
        hidden = jax.jit(lambda weights, run=run: call(run, weights, "hidden", *text(documents), None, True)[0])
        outputs.append(hidden(weights))
    np.testing.assert_allclose(outputs[0][:, 0], outputs[1][:, 0], rtol=1e-6)  # alone, wherever it stands
    assert np.max(np.abs(outputs[0] - outputs[1])) > 1e-2


def test_the_embedding_of_a_frequent_token_learns_from_all_of_its_places_in_bfloat16():
    """4,096 equal gradients: a sum in bfloat16 would stop growing after 256 of them."""
    rows = 4096 // L
    fields = {"model.num_layers": 1, "moe.num_experts": 0, "data.batch_size": rows}
    weights = build(make_run(**fields))[1]
    inputs, targets = jnp.full((rows, L), 7, jnp.int32), jnp.full((rows, L), 3, jnp.int32)

    def gradient(dtype):
        run = make_run(**fields, **{"model.dtype": dtype})
        arguments = *text(jnp.ones((rows, L), jnp.int32), inputs, targets), None, True
        loss = lambda weights: jnp.mean(call(run, weights, "negative_log_likelihood", *arguments)[0])
        return np.asarray(jax.jit(jax.grad(loss))(weights)["embedding"][...][7])

    exact = gradient("float32")
    assert np.linalg.norm(gradient("bfloat16") - exact) < 2e-2 * np.linalg.norm(exact)


def test_places_of_a_pattern_take_turns_in_the_order_of_layers():
    """Three repeats of two places: layers 0, 2, 4 and 1, 3, 5; and back."""
    places = [jnp.array([[0.0], [2], [4]]), jnp.array([[1.0], [3], [5]])]
    np.testing.assert_array_equal(in_layer_order(places)[:, 0], np.arange(6))
    jax.tree.map(np.testing.assert_array_equal, by_place(in_layer_order(places), 2), places)
    assert in_layer_order([jnp.zeros((3, 0))] * 2).shape == (6, 0)
