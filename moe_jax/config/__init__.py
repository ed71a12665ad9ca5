"""Configuration: every field (`schema`), what each layer is made of (`layers`), capacity, and rules for checks."""

from moe_jax.config.schema import (
    AttentionConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    TrainConfig,
    default_config,
    flatten,
    identity,
)

__all__ = [
    "AttentionConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "default_config",
    "flatten",
    "identity",
]
