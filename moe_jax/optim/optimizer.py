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
    """Reaches learning_rate at the end of the warm-up, then falls with 1 / sqrt(step) (Vaswani et al. 2017)."""
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
    if not train.warmup_steps:
        return optax.constant_schedule(train.learning_rate)
    return optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)


SCHEDULES: dict[str, Callable[[TrainConfig], optax.Schedule]] = {
    "cosine": _cosine,
    "rsqrt": _inverse_square_root,
    "wsd": _warmup_stable_decay,
    "constant": _warmup_then_constant,
}


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """The schedule of a run: a function from the number of a step, counted from 0, to its learning rate."""
    return SCHEDULES[train.schedule](train)


def _adamw(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(train), train.b1, train.b2, train.eps, weight_decay=train.weight_decay, mask=decayed
    )


def _adafactor(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018) as Switch Transformer used it: updates scale with the parameter.

    A parameter is here the whole stack of a segment's layers, or of their experts. Weight decay is in proportion to the
    learning rate, as it is in AdamW; optax's own is not.
    """
    rate = learning_rate(train)
    adafactor = optax.adafactor(rate)
    if not train.weight_decay:
        return adafactor
    return optax.chain(adafactor, optax.add_decayed_weights(lambda step: -train.weight_decay * rate(step), decayed))


OPTIMIZERS: dict[str, Callable[[TrainConfig, PyTree], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
}


def make_optimizer(train: TrainConfig, decayed: PyTree) -> optax.GradientTransformation:
    """The optimiser of a run. `decayed` says for each parameter whether weight decay applies to it."""
    update = OPTIMIZERS[train.optimizer](train, decayed)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), update) if train.clip_norm else update
