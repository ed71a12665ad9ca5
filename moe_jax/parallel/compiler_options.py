"""Options that XLA needs to run collectives beside computation. The trainer and the audit compile with the same."""

TPU = {
    # Without these two every all-to-all is a blocking operation, also where nothing waits for it.
    "xla_tpu_enable_async_all_to_all": True,
    "xla_tpu_force_async_all_to_all": True,
    # The SparseCore gathers weights and scatters gradients while the matmuls run; the second is for groups that span
    # two dimensions of the torus. Chips without a SparseCore take no notice.
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
}
GPU = {"xla_gpu_enable_latency_hiding_scheduler": True}  # moves work between the start and the done of a collective

OPTIONS = {"tpu": TPU, "gpu": GPU}


def compiler_options(platform: str) -> dict[str, str | bool]:
    """Options for `compile(compiler_options=...)` on a platform (`jax.Device.platform`); {} where none is needed."""
    return dict(OPTIONS.get(platform, {}))
