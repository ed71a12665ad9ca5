"""Configuration: declared once (`schema`), checked once (`resolve`), counted without building anything (`counting`)."""

from moe_jax.config.schema import (
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
