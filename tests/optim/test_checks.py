"""Every condition of section `train`, broken once."""

import dataclasses
import re

import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig, TrainConfig
from moe_jax.optim.checks import check
from moe_jax.optim.optimizer import OPTIMIZERS, SCHEDULES


def run_of(**fields):
    return dataclasses.replace(RunConfig(), train=dataclasses.replace(TrainConfig(), **fields))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_possible(optimizer, schedule):
    check(run_of(optimizer=optimizer, schedule=schedule, steps=100, warmup_steps=50, decay_steps=50, profile=(0, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "train.steps=0 must be positive: give at least 1"),
        ({"accumulate": 0}, "train.accumulate=0 must be positive: give at least 1"),
        ({"warmup_steps": -1}, "train.warmup_steps=-1 is negative: give 0 or more"),
        ({"decay_steps": -1}, "train.decay_steps=-1 is negative: give 0 or more"),
        ({"optimizer": "sgd"}, "train.optimizer='sgd' is unknown: choose one of adamw, adafactor"),
        ({"schedule": "step"}, "train.schedule='step' is unknown: choose one of cosine, rsqrt, wsd, constant"),
        ({"learning_rate": 0.0}, "train.learning_rate=0.0 must be positive: give more than 0"),
        ({"eps": 0.0}, "train.eps=0.0 must be positive: give more than 0"),
        ({"weight_decay": -0.1}, "train.weight_decay=-0.1 is negative: give 0 or more"),
        ({"clip_norm": -1.0}, "train.clip_norm=-1.0 is negative: give 0 or more"),
        ({"final_learning_rate": 1.5}, "train.final_learning_rate=1.5 is outside [0, 1]: choose a value inside"),
        ({"b1": 1.0}, "train.b1=1.0 is outside [0, 1): choose a value inside"),
        ({"b2": -0.5}, "train.b2=-0.5 is outside [0, 1): choose a value inside"),
        ({"accumulate": 3}, "data.batch_size=64 is not a multiple of train.accumulate=3: use data.batch_size=63 or 66"),
        (
            {"schedule": "wsd", "steps": 100, "warmup_steps": 50, "decay_steps": 51},
            "train.decay_steps=51 and train.warmup_steps=50 exceed train.steps=100: shorten one of them",
        ),
        ({"profile": (20,)}, "train.profile=(20,) is not (first step, number of steps): for instance (20, 3)"),
        ({"profile": (-1, 3)}, "train.profile=(-1, 3) is not (first step, number of steps)"),
        ({"profile": (20, 0)}, "train.profile=(20, 0) is not (first step, number of steps)"),
    ],
    ids=str,
)
def test_impossible(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(run_of(**fields))
