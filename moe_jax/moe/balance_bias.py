"""The expert bias of balancing without an auxiliary loss (Wang et al. 2024; DeepSeek-V3)."""

from flax import nnx


class BalanceBias(nnx.Variable):
    """[E], added to the scores when experts are selected, never to the gates. No gradient reaches it: the training step
    updates it from the counts of the whole batch, so it is no `nnx.Param`. Replicated on the mesh.
    """
