"""Options that XLA needs to run collectives beside computation. The trainer and the audit compile with the same."""

# XLA for TPU runs all-to-alls as blocking operations by default, also where nothing waits for them.
TPU = {"xla_tpu_enable_async_all_to_all": True, "xla_tpu_force_async_all_to_all": True}
# XLA for GPU makes every collective a start and a done; only this scheduler moves work between the two.
GPU = {"xla_gpu_enable_latency_hiding_scheduler": True}

OPTIONS = {"tpu": TPU, "gpu": GPU, "cpu": {}}


def compiler_options(platform: str) -> dict[str, bool]:
    """Options for `compile(compiler_options=...)` on a platform as `jax.Device.platform` names it; {} if unknown."""
    return dict(OPTIONS.get(platform, {}))
