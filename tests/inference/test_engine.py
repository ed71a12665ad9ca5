"""Continuous batching: what a sequence gets does not depend on its neighbours, on its place or on when it joined."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MeshConfig
from moe_jax.inference.engine import Engine, Load, Request
from moe_jax.inference.sampling import Sampling
from moe_jax.inference.text import Reader, Text
from moe_jax.inference.weights import place
from moe_jax.interop.loaded_model import load_hf
from moe_jax.parallel.mesh import make_mesh

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
FAMILY, LENGTH, STOP = "mixtral", 24, 7  # a window of 7 positions
TEXT = Text(lambda text: [ord(c) - 97 for c in text], lambda ids: "".join(chr(97 + i) for i in ids), frozenset([STOP]))
DRAWN = Sampling(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01)


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        return load_hf(GOLDEN / FAMILY, dtype="float64")


def make_engine(model, places=3, continuous=True, piece=4, mesh=None):
    run, mesh = model.run, model.mesh if mesh is None else make_mesh(mesh)
    weights = place(run, mesh, jnp.int32(0), *model.weights)
    return Engine(run, mesh, weights, TEXT, places, LENGTH, piece, continuous)


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    prompts = [tuple(map(int, rng.integers(8, 26, length))) for length in (1, 9, 3, 17, 4, 5, 2)]
    greedy = [Request(prompt, max_tokens=3 + i, name=i, ignore_stop=True) for i, prompt in enumerate(prompts)]
    drawn = [dataclasses.replace(one, sampling=dataclasses.replace(DRAWN, seed=one.name)) for one in greedy]
    return [*greedy[:5], *drawn[5:], dataclasses.replace(drawn[1], name=7)]


@pytest.fixture(scope="module")
def first_engine(model):
    with jax.enable_x64(True):
        return make_engine(model)


@pytest.fixture(scope="module")
def together(first_engine, requests):
    with jax.enable_x64(True):
        return {answer.request.name: answer for answer in first_engine.answers(requests)}


def test_greedy_text_is_what_the_whole_forward_pass_prefers(model, together, requests):
    with jax.enable_x64(True):
        for request in requests[:5]:
            answer = together[request.name]
            ids = np.array([[*request.prompt, *answer.tokens]])
            logits = np.asarray(jax.nn.log_softmax(model(ids)[0, len(request.prompt) - 1 : -1]))
            np.testing.assert_array_equal(answer.tokens, np.argmax(logits, axis=-1))
            np.testing.assert_allclose(answer.log_probabilities, np.max(logits, axis=-1), rtol=1e-5)
            assert answer.finish == "length" and len(answer.tokens) == request.max_tokens
            assert len(answer.times) == len(answer.tokens)


@pytest.mark.parametrize("how", ["alone", "all at once", "static", "eight devices"])
def test_neighbours_change_nothing(model, first_engine, together, requests, how, monkeypatch):
    """A static batch, which waits for its longest answer, only takes more steps."""
    settings = {
        "alone": {"places": 1}, "all at once": {"places": 8, "piece": 16}, "static": {"continuous": False},
        "eight devices": {"places": 8, "mesh": MeshConfig(fsdp=2, expert=2, tensor=2)},
    }[how]  # fmt: skip
    if how == "all at once":  # and only a part of the caches is read
        monkeypatch.setattr("moe_jax.inference.engine.LEAST_REACH", 8)
    with jax.enable_x64(True):
        engine = make_engine(model, **settings)
        for answer in engine.answers(requests):
            assert answer.tokens == together[answer.request.name].tokens, answer.request.name
        assert engine.load.prefill_tokens == sum(len(one.prompt) for one in requests)
        steps = len(engine.load.seconds)
        assert sum(engine.load.sequences) == sum(first_engine.load.sequences)
    if how == "static":
        assert steps > len(first_engine.load.seconds)


def test_another_seed_draws_something_else(together, requests):
    other, one = together[7], together[1]
    assert other.request.prompt == one.request.prompt and other.tokens != one.tokens
    assert len({tuple(answer.tokens) for answer in together.values()}) == len(requests)


def test_empty_places_choose_no_expert(first_engine, requests):
    """Of three places one is taken: its token alone chooses experts."""
    with jax.enable_x64(True):
        first_engine.load = Load()
        list(first_engine.answers([requests[0]]))
    top_k = first_engine.steps.run.moe.top_k
    assert first_engine.load.choices
    assert {float(np.sum(layer)) for step in first_engine.load.choices for layer in step} == {float(top_k)}


def test_stops(model, first_engine, together, requests):
    """A stop token ends an answer and is left out; so does a text, and the room of the cache."""
    first = together[4].tokens
    with jax.enable_x64(True):
        engine, before = first_engine, first_engine.text
        engine.text = dataclasses.replace(TEXT, stop_tokens=frozenset([first[2]]))
        one = dataclasses.replace(requests[4], ignore_stop=False)
        until = first.index(first[2])
        answer = next(iter(engine.answers([one])))
        assert answer.tokens == first[:until] and answer.finish == "stop"
        assert next(iter(engine.answers([dataclasses.replace(one, ignore_stop=True)]))).tokens == first
        engine.text = before
        spelled = TEXT.decode(first)
        by_text = dataclasses.replace(requests[4], stop=(spelled[1:3],))
        answer = next(iter(engine.answers([by_text])))
        assert answer.text == spelled[: spelled.index(spelled[1:3])] and answer.finish == "stop"
        both = (spelled[2:3], spelled[1:3])  # the first that begins counts, where one token ends both
        answer = next(iter(engine.answers([dataclasses.replace(requests[4], stop=both)])))
        ends = next(n for n in range(len(spelled)) if any(stop in spelled[:n] for stop in both))
        assert answer.text == spelled[: min(spelled.index(stop) for stop in both if stop in spelled[:ends])]
        long = dataclasses.replace(requests[4], max_tokens=1000)
        answer = next(iter(engine.answers([long])))
        assert len(answer.tokens) == LENGTH - len(long.prompt) and answer.finish == "length"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "a prompt is empty: write something"),
        (Request((1,) * LENGTH), f"a prompt of {LENGTH} tokens has no room in --length={LENGTH}: raise --length to"),
        (Request((1, 40)), "a prompt has the token 40, and the vocabulary has 40: remove it"),
        (Request((1,), max_tokens=0), "max_tokens=0: give 1 or more"),
        (Request((1,), sampling=Sampling(temperature=-1.0)), "--temperature=-1.0: give from 0 to 1e30"),
    ],
)
def test_what_cannot_be_answered_is_one_line(first_engine, request_, message):
    with pytest.raises(ConfigError, match=message):
        list(first_engine.answers([request_]))


def test_places_that_the_mesh_does_not_divide(model):
    with jax.enable_x64(True), pytest.raises(ConfigError, match="--places=3 does not divide over the 4 parts"):
        make_engine(model, places=3, mesh=MeshConfig(fsdp=2, expert=2, tensor=2))


def test_a_reader_holds_back_characters_that_are_not_whole():
    encoded = "na\u00efve \u2192 \U0001f600!".encode() * 9
    reader = Reader(lambda ids: bytes(ids).decode(errors="replace"))
    seen = [reader.add(byte) for byte in encoded]
    assert all("\ufffd" not in text for text in seen) and seen[-1] == reader.end() == encoded.decode()
    assert all(later.startswith(text) for text, later in itertools.pairwise(seen))
    reader.add(0xE2)
    assert reader.end() == encoded.decode() + "\ufffd"
