"""What a token costs: time, bytes that are read for it, and money."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from moe_jax.config.rules import ConfigError
from moe_jax.inference.dense_twins import twins
from moe_jax.inference.engine import Answer, Engine, Load, Request
from moe_jax.inference.generate import accepted
from moe_jax.inference.prompts import Refused
from moe_jax.inference.steps import cache_bytes
from moe_jax.inference.weights import Weights, num_bytes
from moe_jax.journal.workdir import write_json
from moe_jax.report.markdown import rows

BANDWIDTH_BYTES = 1 << 28  # of the array that is read to measure the memory
BANDWIDTH_READS = 7


class Bytes(NamedTuple):
    """What a step of decoding has to read at least."""

    dense: int  # weights that every token meets
    expert: int  # of one expert of one layer
    position: float  # of a cache, a sequence


@dataclasses.dataclass(frozen=True)
class Cost:
    """Measured on a set of prompts."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    seconds_to_first_token: float  # median over prompts
    seconds_between_tokens: float  # median
    seconds_between_tokens_p95: float
    weight_bytes_per_step: float  # mean over steps of decoding, of experts only those that were chosen
    cache_bytes_per_step: float
    sequences_per_step: float
    bandwidth: float  # bytes a second that these devices read at, in this run
    over_bandwidth_bound: float  # median time of a step over what its bytes take at that bandwidth
    experts_by_batch: dict[str, float]  # fractions of a layer's experts that had so many tokens in a step
    imbalance: float  # the largest load of a layer over the mean one, mean over steps and layers
    dollars_per_million_tokens: float  # of answers, decoding alone, at the price that was given


def report(
    engine: Engine, requests: Sequence[Request | Refused], folder: Path | None, price: float, compare: bool
) -> int:
    """Measures the answers to the requests, prints the tables, and writes cost.json to `folder`. Returns 0.

    `compare`: the same for dense models of as many parameters in all, and of as many that a token meets.
    """
    good, refused = accepted(engine, requests)
    if not good or refused:
        raise ConfigError(f"--cost needs prompts that can be answered: {refused[0].reason if refused else 'give some'}")
    engines = {"this model": engine} | (twins(engine) if compare else {})
    bandwidth = memory_bandwidth(engine)
    measured = {}
    for name, one in engines.items():
        answers = _answers(one, good)
        measured[name] = _cost(one, answers, bandwidth, price)
        if one is engine:
            print("\n".join(_by_prompt(answers)) + "\n")
    print("\n".join(table(measured)))
    if folder is not None:
        path = folder / "cost.json"
        write_json(path, {name: dataclasses.asdict(cost) for name, cost in measured.items()})
        logging.info("%s has these figures", path)
    return 0


def measure(engine: Engine, requests: Sequence[Request], bandwidth: float, price: float = 0.0) -> Cost:
    """What the answers to the requests cost, everything being compiled before."""
    return _cost(engine, _answers(engine, requests), bandwidth, price)


def _answers(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    for _ in engine.answers(requests):  # so that everything is compiled before the clock runs
        pass
    engine.load = Load()
    return list(engine.answers(requests))


def memory_bandwidth(engine: Engine) -> float:
    """Bytes a second that the devices of the mesh read at, together: the best of some sums over a long array."""
    mesh = engine.steps.mesh
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    array = jax.device_put(jnp.ones((mesh.size, BANDWIDTH_BYTES // 4)), sharding)
    add = jax.jit(lambda array: jnp.sum(array, axis=1))
    jax.block_until_ready(add(array))
    seconds = []
    for _ in range(BANDWIDTH_READS):
        began = time.perf_counter()
        jax.block_until_ready(add(array))
        seconds.append(time.perf_counter() - began)
    return array.nbytes / min(seconds)


def bytes_of(engine: Engine) -> Bytes:
    """Of one device's weights in all; a head that is tied to the embedding is counted as what is read."""
    weights: Weights = engine.steps.weights
    experts = [layer[0]["moe"]["experts"] for layer in weights.layers if "moe" in layer[0]]
    of_experts = sum(num_bytes(one) for one in experts)
    run = engine.steps.run
    per_expert = of_experts // max(len(experts) * run.moe.num_experts, 1)
    dense = num_bytes(weights.layers) + num_bytes(weights.head) - of_experts
    per_sequence = cache_bytes(run, engine.length, engine.piece)
    return Bytes(dense, per_expert, per_sequence / engine.length)


def _cost(engine: Engine, answers: Sequence[Answer], bandwidth: float, price: float) -> Cost:
    load, size = engine.load, bytes_of(engine)
    gaps = np.concatenate([np.diff(one.times) for one in answers] or [np.zeros(0)])
    seconds, sequences = np.asarray(load.seconds), np.asarray(load.sequences)
    visits = [sum(_experts_read(engine, layer) for layer in step) for step in load.choices]
    weight_bytes = size.dense + size.expert * np.asarray(visits, float)
    read = weight_bytes + size.position * np.asarray(load.positions)
    if not len(seconds):
        raise ConfigError("--cost: no answer has a second token: raise --max_tokens, or set --ignore_stop")
    loads = np.concatenate([np.ravel(layer) for step in load.choices for layer in step] or [np.zeros(0)])
    per_token = float(seconds.sum() / sequences.sum())
    return Cost(
        prefill_tokens_per_second=load.prefill_tokens / load.prefill_seconds,
        decode_tokens_per_second=1 / per_token,
        seconds_to_first_token=float(np.median([one.times[0] - one.began for one in answers])),
        seconds_between_tokens=float(np.median(gaps)),
        seconds_between_tokens_p95=float(np.quantile(gaps, 0.95)),
        weight_bytes_per_step=float(weight_bytes.mean()),
        cache_bytes_per_step=float((size.position * np.asarray(load.positions)).mean()),
        sequences_per_step=float(sequences.mean()),
        bandwidth=bandwidth,
        over_bandwidth_bound=float(np.median(seconds / (read / bandwidth))),
        experts_by_batch=_histogram(loads),
        imbalance=_imbalance(load),
        dollars_per_million_tokens=price / 3600 * per_token * 1e6,
    )


def _experts_read(engine: Engine, choices: np.ndarray) -> float:
    """How many experts' weights a layer reads in a step: those that were chosen, each once."""
    return float(np.count_nonzero(choices[: engine.steps.run.moe.num_experts]))


def _histogram(loads: np.ndarray) -> dict[str, float]:
    """Fractions of experts by their number of tokens in a step."""
    parts = {"0": loads == 0, "1": loads == 1, "2": loads == 2, "3 to 4": (loads > 2) & (loads < 5)}
    parts |= {"5 to 8": (loads > 4) & (loads < 9), "more": loads > 8}
    return {name: float(part.mean()) for name, part in parts.items()} if len(loads) else {}


def _imbalance(load: Load) -> float:
    ratios = [float(layer.max() / layer.mean()) for step in load.choices for layer in step if layer.sum()]
    return float(np.mean(ratios)) if ratios else 1.0


def _by_prompt(answers: Sequence[Answer]) -> list[str]:
    header = ["prompt", "tokens", "answer", "first token, ms", "between, ms", "p95, ms", "tokens/s"]
    body = []
    for number, one in enumerate(sorted(answers, key=lambda one: one.request.sampling.seed)):
        gaps = np.diff(one.times) if len(one.times) > 1 else np.zeros(1)
        body.append([
            str(number if one.request.name is None else one.request.name), str(len(one.request.prompt)),
            str(len(one.tokens)), f"{1e3 * (one.times[0] - one.began):.1f}", f"{1e3 * np.median(gaps):.2f}",
            f"{1e3 * np.quantile(gaps, 0.95):.2f}", f"{len(one.times) / (one.times[-1] - one.began):.0f}",
        ])  # fmt: skip
    return rows(header, body)


def table(measured: dict[str, Cost]) -> list[str]:
    """The lines of a table with a column for each model."""
    lines: list[tuple[str, Any]] = [
        ("prefill, tokens/s", lambda c: f"{c.prefill_tokens_per_second:,.0f}"),
        ("decoding, tokens/s", lambda c: f"{c.decode_tokens_per_second:,.1f}"),
        ("first token, ms", lambda c: f"{1e3 * c.seconds_to_first_token:.1f}"),
        ("between tokens, ms", lambda c: f"{1e3 * c.seconds_between_tokens:.2f}"),
        ("between tokens, ms, 95%", lambda c: f"{1e3 * c.seconds_between_tokens_p95:.2f}"),
        ("sequences a step", lambda c: f"{c.sequences_per_step:.1f}"),
        ("weights read a step, MB", lambda c: f"{c.weight_bytes_per_step / 1e6:,.1f}"),
        ("cache read a step, MB", lambda c: f"{c.cache_bytes_per_step / 1e6:,.2f}"),
        ("memory, GB/s", lambda c: f"{c.bandwidth / 1e9:.1f}"),
        ("step over its bytes at that speed", lambda c: f"{c.over_bandwidth_bound:.2f}"),
        ("experts by tokens", lambda c: ", ".join(f"{n}: {f:.0%}" for n, f in c.experts_by_batch.items() if f)),
        ("largest load over the mean", lambda c: f"{c.imbalance:.2f}"),
        ("a million tokens, $", lambda c: f"{c.dollars_per_million_tokens:,.3f}"),
    ]  # fmt: skip
    return rows(["", *measured], [[name, *(show(cost) for cost in measured.values())] for name, show in lines])
