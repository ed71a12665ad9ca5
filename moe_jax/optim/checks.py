"""What section `train` of a run has to satisfy."""

from moe_jax.config.rules import (
    ConfigError,
    below_one,
    between,
    divides,
    each,
    not_blank,
    not_negative,
    one_of,
    positive,
)
from moe_jax.config.schema import RunConfig
from moe_jax.optim.optimizer import OPTIMIZERS, SCHEDULES


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition of section `train` that does not hold."""
    train = run.train
    each(run, "train.steps train.accumulate", positive)
    each(run, "train.warmup_steps train.decay_steps", not_negative)
    one_of("train.optimizer", train.optimizer, OPTIMIZERS)
    one_of("train.schedule", train.schedule, SCHEDULES)
    each(run, "train.learning_rate train.eps", positive)
    each(run, "train.weight_decay train.clip_norm train.max_skipped", not_negative)
    between("train.final_learning_rate", train.final_learning_rate, 0, 1)
    each(run, "train.b1 train.b2", below_one)
    divides("train.accumulate", train.accumulate, "data.batch_size", run.data.batch_size)
    not_blank("train.trainable", [pattern.removeprefix("!") for pattern in train.trainable])
    if train.schedule == "wsd" and train.warmup_steps + train.decay_steps > train.steps:
        raise ConfigError(
            f"train.decay_steps={train.decay_steps} and train.warmup_steps={train.warmup_steps} exceed "
            f"train.steps={train.steps}: shorten one of them"
        )
    if train.profile and (len(train.profile) != 2 or min(train.profile) < 0 or train.profile[1] == 0):
        raise ConfigError(f"train.profile={train.profile} is not (first step, number of steps): for instance (20, 3)")
