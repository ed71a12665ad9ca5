"""A block has the parts that its `LayerSpec` names, one after another on the residual stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import run_of
from flax import nnx
from one_device import on_one_device

from moe_jax.config.layers import DenseSpec, LayerSpec
from moe_jax.config.schema import AttentionConfig
from moe_jax.models.attention.mask import Mask
from moe_jax.models.block import Block
from moe_jax.moe.context import plain_context
from moe_jax.parallel.sharding import fan_in_init

B, L, P, D = 2, 6, 5, 8
RUN = run_of(
    {
        "model.d_model": D, "moe.num_experts": 2, "moe.d_ff": 12, "moe.group_size": L,
        "data.sequence_length": L, "data.batch_size": B,
    }
)  # fmt: skip
SELF, CROSS, DENSE = AttentionConfig(window=3), AttentionConfig(), DenseSpec(12, "swiglu")
SPECS = {
    "cross-attention": LayerSpec(SELF, DENSE, CROSS),
    "cross-attention and experts": LayerSpec(SELF, RUN.moe, CROSS),
    "cross-attention alone": LayerSpec(None, DENSE, CROSS),
    "no attention": LayerSpec(None, DENSE),
    "no attention, experts": LayerSpec(None, RUN.moe),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_parts_add_to_the_stream_in_turn(spec):
    with jax.enable_x64(True):
        block = Block(spec, RUN, fan_in_init(1.0), nnx.Rngs(params=0), jnp.float64)
        has_part = [hasattr(block, part) for part in ("attention", "cross_attention", "feed_forward", "moe")]
        dense = isinstance(spec.feed_forward, DenseSpec)
        assert has_part == [spec.attention is not None, spec.cross_attention is not None, dense, not dense]
        graphdef, weights = nnx.split(block)
        rng = np.random.default_rng(0)
        x, memory = rng.normal(size=(B, L, D)), rng.normal(size=(B, P, D))
        mask, context = Mask(window=3), plain_context((B, L))

        def both(weights, x, memory):
            block = nnx.merge(graphdef, weights)
            y, sums, _ = block(x, mask, context, True, memory)
            by_hand = x
            if spec.attention is not None:
                by_hand = by_hand + block.attention(block.norm_attention(by_hand), mask)[0]
            if spec.cross_attention is not None:
                everything = Mask(causal=False)
                by_hand += block.cross_attention(block.norm_cross_attention(by_hand), everything, memory)[0]
            normed = block.norm_feed_forward(by_hand)
            if dense:
                return y, by_hand + block.feed_forward(normed), sums, None
            added, expected_sums = block.moe(normed, context, True)
            return y, by_hand + added, sums, expected_sums

        y, expected, sums, expected_sums = jax.jit(on_one_device(both))(weights, x, memory)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        jax.tree.map(np.testing.assert_array_equal, sums, expected_sums)
        assert (sums is None) == dense
        assert np.all(np.any(y != x, axis=-1))
