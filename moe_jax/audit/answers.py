"""What an estimate means: speed, utilisation, money, energy, and what a step waits for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_jax.audit.compile import Built
from moe_jax.audit.estimate import Estimate
from moe_jax.audit.schedule import MATMUL, MEMORY
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.parallel.chips import Chip
from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.resolve.counting import causal_flops_per_token, count

TRAIN, PREFILL, DECODE = MODES = ("train", "prefill", "decode")
EXCHANGES = ("all-to-all", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does."""

    mode: str = TRAIN
    places: int = 0  # sequences that are decoded at a time, on all devices together
    length: int = 0  # tokens of each that are in the caches
    piece: int = 256  # tokens of a prompt that are computed at once
    form: str = ""  # of weights: "" or "int8"

    def tokens(self, run: RunConfig) -> int:
        """Of a step, on all devices together."""
        if self.mode == TRAIN:
            return run.data.batch_size * run.data.sequence_length
        if self.mode == DECODE:
            return self.places
        parts = 1
        for axis in TOKEN_AXES:
            parts *= getattr(run.mesh, axis)
        return parts * self.piece

    def model_flops(self, run: RunConfig) -> float:
        """FLOPs that the model needs for a step, whatever the program does: no recomputation, no empty slots.

        Attention of training and of prompts counts half of the scores, since the other half is masked; a token that is
        decoded sees all of its sequence.
        """
        if self.mode == TRAIN:
            return float(causal_flops_per_token(run) * self.tokens(run))
        at_length = dataclasses.replace(run, data=dataclasses.replace(run.data, sequence_length=self.length))
        per_token = count(at_length).flops_per_token if self.mode == DECODE else causal_flops_per_token(at_length)
        return per_token / 3 * self.tokens(run)


def overridden(chip: Chip, constants: Mapping[str, float]) -> Chip:
    """The chip with other constants. Raises ConfigError for a name that is none, and a number that cannot be."""
    for name, value in constants.items():
        if name not in Chip._fields:
            known = ", ".join((*Chip._fields, "matmul", "memory_reach"))
            raise ConfigError(f"--constants: {name} is no constant of a chip: use one of {known}")
        if not value >= 0 or (value == 0 and name in ("flops", "memory", "bandwidth", "link", "network")):
            raise ConfigError(f"--constants: {name}={value}: give more than 0")
    return Chip(**{**chip._asdict(), **constants})


def answers(run: RunConfig, work: Work, built: Built, chip: Chip, found: Estimate | None) -> dict[str, Any]:
    """The answers for audit.json. Without an estimate, those about memory alone.

    `utilization` is that of model FLOPs; `exchange_share` the fraction of the step that waits for all-to-alls, the
    hidden tax; `idle_share` that which waits for any collective.
    """
    devices = run.mesh.data * run.mesh.fsdp * run.mesh.expert * run.mesh.tensor
    record: dict[str, Any] = {
        "chip_memory_bytes": chip.memory,
        "fits": bool(built.text) and built.peak_memory <= chip.memory,
        "argument_bytes": built.arguments,
        "tokens_per_step": work.tokens(run),
        "model_flops_per_device": work.model_flops(run) / devices,
    }
    if found is None:
        return record
    per_second = work.tokens(run) / found.seconds
    walked = found.compiler or found.schedule
    waits = {what: seconds for what, seconds in walked.spent.items() if what not in (MATMUL, MEMORY)}
    hours = devices / per_second / 3600  # chip-hours a token
    return record | {
        "tokens_per_second": per_second,
        "tokens_per_second_per_device": per_second / devices,
        "utilization": record["model_flops_per_device"] / chip.flops / found.seconds,
        "chip_hours_per_million_tokens": hours * 1e6,
        "cost_per_million_tokens": hours * 1e6 * chip.price if chip.price else None,
        "kilowatt_hours_per_million_tokens": hours * 1e6 * chip.watts / 1e3 if chip.watts else None,
        "bottleneck": max(walked.spent, key=walked.spent.__getitem__, default=""),
        "exchange_share": sum(waits.get(kind, 0.0) for kind in EXCHANGES) / walked.seconds,
        "idle_share": sum(waits.values()) / walked.seconds,
    }
