"""Continuous batching: a fixed number of places, of which a finished sequence's is taken by the next prompt."""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.inference.sampling import GREEDY, Sampling, Settings
from moe_jax.inference.steps import Steps, Turn, empty_caches
from moe_jax.inference.text import Reader, Text
from moe_jax.inference.weights import Weights

LEAST_REACH = 256  # positions of a cache that are read, at least; then twice as many, and so on
LEAST_PIECE = 16  # a piece of a prompt is padded to the next power of two, this one at least


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how it is gone on with."""

    prompt: tuple[int, ...]
    max_tokens: int = 128
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()  # texts that end it; they are left out
    ignore_stop: bool = False  # go on behind the model's own stop tokens
    name: Any = None  # returned with the answer
    line: int = 1  # of the file of prompts


@dataclasses.dataclass
class Answer:
    """What followed a prompt, and when."""

    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probabilities: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: str = ""  # "stop" or "length"; "": not finished
    began: float = 0.0  # time.perf_counter() when its prompt was taken
    times: list[float] = dataclasses.field(default_factory=list)  # likewise when each token was there


@dataclasses.dataclass
class Load:
    """What the experts had to do in the steps of decoding, for `cost.py`."""

    choices: list[list[np.ndarray]] = dataclasses.field(default_factory=list)  # by step and MoE layer: [A]
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each step
    sequences: list[int] = dataclasses.field(default_factory=list)  # that went on in it
    positions: list[int] = dataclasses.field(default_factory=list)  # in the caches of these, together
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0


class Engine:
    """Answers requests, `places` at a time, each in a cache of `length` positions."""

    def __init__(
        self,
        run: RunConfig,
        mesh: Mesh,
        weights: Weights,
        text: Text,
        places: int = 1,
        length: int = 1024,
        piece: int = 256,
        continuous: bool = True,
    ):
        """`piece`: the most tokens of a prompt that are computed at once. `continuous`: with False the places are
        filled anew only when all are free, for comparison.
        """
        self.steps = Steps(run, mesh, weights)
        if places < 1 or places % self.steps.shards:
            raise ConfigError(
                f"--places={places} does not divide over the {self.steps.shards} parts that the mesh cuts a batch "
                f"into: give a multiple of {self.steps.shards}"
            )
        self.text, self.places, self.length, self.continuous = text, places, length, continuous
        self.vocabulary, self.piece = run.model.vocab_size, min(piece, bucket(length))
        self.caches = empty_caches(run, mesh, places, length, self.piece)
        self.load = Load()
        self._of_place: list[_Running | None] = [None] * places

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers as they get finished. A request that cannot be answered raises ConfigError when it is taken."""
        for answer in self.tokens(requests):
            if answer.finish:
                yield answer

    def tokens(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Each answer after each of its tokens."""
        waiting = collections.deque(requests)
        for request in waiting:
            self.check(request)
        self._of_place = [None] * self.places  # also where nobody waited for the answers before
        while waiting or any(self._of_place):
            if self.continuous or not any(self._of_place):
                while waiting and None in self._of_place:
                    yield from self._admit(waiting)
            if any(self._of_place):
                yield from self._decode()

    def check(self, request: Request) -> None:
        """Raises ConfigError, in one line, for a request that cannot be answered."""
        room = self.length - len(request.prompt)
        if not request.prompt:
            raise ConfigError("a prompt is empty: write something, or give the ids of a beginning-of-text token")
        if room < 1:
            raise ConfigError(
                f"a prompt of {len(request.prompt)} tokens has no room in --length={self.length}: raise --length to "
                f"{len(request.prompt) + request.max_tokens}, or shorten it"
            )
        unknown = [token for token in request.prompt if not 0 <= token < self.vocabulary]
        if unknown:
            raise ConfigError(
                f"a prompt has the token {unknown[0]}, and the vocabulary has {self.vocabulary}: remove it"
            )
        if request.max_tokens < 1:
            raise ConfigError(f"max_tokens={request.max_tokens}: give 1 or more")
        request.sampling.check()

    def _admit(self, waiting: collections.deque[Request]) -> Iterator[Answer]:
        """Computes the prompts of the next requests, one on each part of the batch that has a free place."""
        shards, each = self.steps.shards, self.places // self.steps.shards
        taken: list[_Running | None] = [None] * shards
        places = np.zeros(shards, np.int32)
        for shard in range(shards):
            own = range(shard * each, (shard + 1) * each)
            free = [place for place in own if self._of_place[place] is None]
            if free and waiting:
                taken[shard] = _Running(Answer(waiting.popleft(), began=time.perf_counter()), self.text.reader())
                places[shard] = free[0] - own[0]
                self._of_place[free[0]] = taken[shard]
        done = [0] * shards
        while any(running and at < len(running.request.prompt) for running, at in zip(taken, done, strict=True)):
            left = [running.request.prompt[at:] if running else () for running, at in zip(taken, done, strict=True)]
            began = time.perf_counter()
            turn, counts = self._turn(left, done)
            settings, greedy = _settings(taken)
            self.caches, outcome = self.steps.prefill(
                self.caches, turn, jnp.asarray(places), settings, greedy, self._reach(np.add(done, counts))
            )
            drawn = jax.device_get(outcome.drawn)
            self.load.prefill_seconds += time.perf_counter() - began
            self.load.prefill_tokens += sum(counts)
            done = [at + count for at, count in zip(done, counts, strict=True)]
            for shard, running in enumerate(taken):
                if running and counts[shard] and done[shard] == len(running.request.prompt):
                    yield self._take(running, int(drawn.token[shard]), float(drawn.log_probability[shard]))

    def _turn(self, left: list[tuple[int, ...]], done: list[int]) -> tuple[Turn, list[int]]:
        counts = [min(len(tokens), self.piece) for tokens in left]
        ids = np.zeros((len(left), bucket(max(counts))), np.int32)
        for row, (tokens, count) in enumerate(zip(left, counts, strict=True)):
            ids[row, :count] = tokens[:count]
        return _turn(ids, np.asarray(done, np.int32), np.asarray(counts, np.int32)), counts

    def _reach(self, lengths: np.ndarray) -> int:
        """What the longest sequence takes of a cache, rounded up so that few steps are compiled."""
        reach = LEAST_REACH
        while reach < np.max(lengths):
            reach *= 2
        return min(reach, self.length)

    def _decode(self) -> Iterator[Answer]:
        """One more token of every sequence."""
        began = time.perf_counter()
        ids, start, number = np.zeros((3, self.places), np.int32)
        for place, running in enumerate(self._of_place):
            if running is not None:
                ids[place], start[place], number[place] = running.answer.tokens[-1], running.position, 1
        settings, greedy = _settings(self._of_place)
        turn = _turn(ids[:, None], start, number)
        self.caches, outcome = self.steps.decode(self.caches, turn, settings, greedy, self._reach(start + number))
        drawn, choices = jax.device_get((outcome.drawn, outcome.choices))
        self.load.choices.append(list(choices))
        self.load.sequences.append(int(number.sum()))
        self.load.positions.append(int(((start + 1) * number).sum()))
        self.load.seconds.append(time.perf_counter() - began)
        for place, running in enumerate(list(self._of_place)):
            if running is not None:
                yield self._take(running, int(drawn.token[place]), float(drawn.log_probability[place]))

    def _take(self, running: "_Running", token: int, log_probability: float) -> Answer:
        """One more token of an answer, whose place is free again where it was the last."""
        answer, request = running.answer, running.request
        answer.times.append(time.perf_counter())
        is_stop = token in self.text.stop_tokens and not request.ignore_stop
        if not is_stop:
            answer.tokens.append(token)
            answer.log_probabilities.append(log_probability)
            answer.text = running.reader.add(token)
        else:
            answer.finish = "stop"
        found = [at for at in map(answer.text.find, request.stop) if at >= 0]
        if found:
            answer.text, answer.finish = answer.text[: min(found)], "stop"
        room = self.length - len(request.prompt)
        if not answer.finish and len(answer.tokens) >= min(request.max_tokens, room):
            answer.finish = "length"
        if answer.finish:
            answer.text = answer.text if found else running.reader.end()
            self._of_place[self._of_place.index(running)] = None
        return answer


@dataclasses.dataclass(eq=False)
class _Running:
    """A sequence that has a place."""

    answer: Answer
    reader: Reader

    @property
    def request(self) -> Request:
        return self.answer.request

    @property
    def position(self) -> int:
        """Of its newest token, which is not in the cache yet."""
        return len(self.request.prompt) + len(self.answer.tokens) - 1


def _settings(running: Sequence[_Running | None]) -> tuple[Settings, bool]:
    return _as_arrays(tuple(one.request.sampling if one else GREEDY for one in running))


@functools.lru_cache(maxsize=8)
def _as_arrays(samplings: tuple[Sampling, ...]) -> tuple[Settings, bool]:
    """Of the newest batches: making arrays takes as long as a small model's step."""
    return Settings.of(samplings), all(sampling.temperature == 0 for sampling in samplings)


def _turn(ids: np.ndarray, start: np.ndarray, number: np.ndarray) -> Turn:
    arrays: Any = jax.device_put((ids, start, number))
    return Turn(*arrays)


def bucket(count: int) -> int:
    """The length that a piece of a prompt is padded to: the next power of two."""
    return max(LEAST_PIECE, 1 << (max(count, 1) - 1).bit_length())
