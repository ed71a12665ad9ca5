"""Optimisers and learning-rate schedules, all of them optax's."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from moe_jax.config.schema import TrainConfig


def _cosine(train: TrainConfig) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0,
        train.learning_rate,
        train.warmup_steps,
        max(train.steps, train.warmup_steps + 1),
        train.learning_rate * train.final_learning_rate,
    )


def _inverse_square_root(train: TrainConfig) -> optax.Schedule:
    """learning_rate at the end of the warm-up, then falling with 1 / sqrt(step) (Vaswani et al. 2017)."""
    warmup = max(train.warmup_steps, 1)
    rising = lambda step: step / warmup if train.warmup_steps else 1.0
    return lambda step: train.learning_rate * jnp.minimum(rising(step), jnp.sqrt(warmup / jnp.maximum(step, 1)))


def _warmup_stable_decay(train: TrainConfig) -> optax.Schedule:
    stable_until = train.steps - train.decay_steps
    return optax.join_schedules(
        [
            _warmup_then_constant(train),
            optax.linear_schedule(
                train.learning_rate, train.learning_rate * train.final_learning_rate, max(train.decay_steps, 1)
            ),
        ],
        [stable_until],
    )


def _warmup_then_constant(train: TrainConfig) -> optax.Schedule:
    return (
        optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
        if train.warmup_steps
        else (optax.constant_schedule(train.learning_rate))
    )


SCHEDULES: dict[str, Callable[[TrainConfig], optax.Schedule]] = {
    "cosine": _cosine,
    "rsqrt": _inverse_square_root,
    "wsd": _warmup_stable_decay,
    "constant": _warmup_then_constant,
}


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """Step number (from 0) to learning rate."""
    return SCHEDULES[train.schedule](train)


def _adamw(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(train), train.b1, train.b2, train.eps, weight_decay=train.weight_decay, mask=decayed
    )


def _adafactor(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    """Adafactor as Switch Transformer used it: updates in proportion to the scale of the parameter, which is here the
    whole stack of a segment's layers or of the experts.

    Weight decay is in proportion to the learning rate, as in AdamW (optax's own is not).
    """
    rate = learning_rate(train)
    adafactor = optax.adafactor(rate)
    if not train.weight_decay:
        return adafactor
    return optax.chain(adafactor, optax.add_decayed_weights(lambda step: -train.weight_decay * rate(step), decayed))


OPTIMIZERS: dict[str, Callable] = {"adamw": _adamw, "adafactor": _adafactor}


def make_optimizer(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    """The optimiser of a run. `decayed`: for each parameter, whether weight decay applies to it."""
    update = OPTIMIZERS[train.optimizer](train, decayed)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), update) if train.clip_norm else update
