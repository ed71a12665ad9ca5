"""The two compiled steps of decoding: a piece of a prompt, and one more token of every sequence."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from moe_jax.config.layers import LayerSpec, segments
from moe_jax.config.schema import RunConfig
from moe_jax.inference.sampling import GREEDY, Drawn, Settings, draw
from moe_jax.inference.weights import Weights, blank, specs_of
from moe_jax.models.attention import ATTENTIONS
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.mask import Mask
from moe_jax.moe.bias_updates import BalanceBias
from moe_jax.moe.context import Context
from moe_jax.moe.packed import whole
from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.mesh import TENSOR, TOKEN_AXES
from moe_jax.parallel.sharding import spec_of
from moe_jax.train.state import with_grouped_matmul

Caches = tuple[KeyValueCache, ...]  # of every layer


class Turn(NamedTuple):
    """What each of R sequences goes on with: the first `number` of its ids, L at most, from position `start` on."""

    ids: Int[Array, "R L"]
    start: Int[Array, "R"]
    number: Int[Array, "R"]  # 0: nothing


class Outcome(NamedTuple):
    """What a step returns beside the caches."""

    drawn: Drawn  # the token behind the last one of each sequence
    logits: Float[Array, "R N V"]  # of all positions, N = L; N = 0 where they are not asked for
    choices: tuple[Float[Array, "A"], ...]  # of each MoE layer: how many tokens chose each expert


def layers_of(run: RunConfig) -> list[LayerSpec]:
    """The layers from input to output."""
    return [layer for part in segments(run) for layer in part.pattern * part.repeats]


def cache_rooms(run: RunConfig, length: int, piece: int) -> list[int]:
    """Positions that the cache of each layer has room for, of sequences of `length` that grow by up to `piece`."""
    windows = [layer.attention.window if layer.attention else 0 for layer in layers_of(run)]
    return [min(length, window + piece - 1) if window else length for window in windows]


def empty_caches(run: RunConfig, mesh: Mesh, places: int, length: int, piece: int) -> Caches:
    """Caches of `places` sequences, cut over the mesh like a batch."""
    made = _makers(run, places, length, piece)
    return tuple(jax.jit(create, out_shardings=NamedSharding(mesh, spec_of(mesh, *cut)))() for create, cut in made)


def cache_shapes(run: RunConfig, mesh: Mesh, places: int, length: int, piece: int) -> Caches:
    """Shapes and shardings of `empty_caches`."""
    shapes = []
    for create, cut in _makers(run, places, length, piece):
        sharding = NamedSharding(mesh, spec_of(mesh, *cut))
        on_mesh = lambda leaf, sharding=sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        shapes.append(jax.tree.map(on_mesh, jax.eval_shape(create)))
    return tuple(shapes)


def cache_bytes(run: RunConfig, length: int, piece: int) -> int:
    """Of one sequence, on all devices together; where heads are not cut, every device along `tensor` has it whole."""
    total = 0
    for create, (*_, heads) in _makers(run, 1, length, piece):
        leaves = jax.tree.leaves(jax.eval_shape(create))
        total += sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) * (1 if heads else run.mesh.tensor)
    return total


def _makers(run: RunConfig, places: int, length: int, piece: int) -> Iterator[tuple[Callable[[], KeyValueCache], Any]]:
    """For each layer, what makes its cache, and how that is cut over mesh axes."""
    for layer, room in zip(layers_of(run), cache_rooms(run, length, piece), strict=True):
        assert layer.attention is not None
        kind = ATTENTIONS[layer.attention.kind]
        create = functools.partial(kind.cache, run.model, layer.attention, places, room, jnp.dtype(run.model.dtype))
        yield create, (TOKEN_AXES, (), kind.CACHE_CUT)


class Steps:
    """The compiled steps of a model on a mesh. A step is compiled at its first call for a length of turn."""

    def __init__(self, run: RunConfig, mesh: Mesh, weights: Weights, few: float = 0.5):
        """`few`: at most so many choices an expert, on average, are computed one after another (`Chosen`)."""
        self.run, self.mesh, self.weights, self._few = run, mesh, weights, few
        self.shards = 1
        for axis in TOKEN_AXES:
            self.shards *= mesh.shape[axis]
        kinds = [ATTENTIONS[layer.attention.kind] for layer in layers_of(run) if layer.attention is not None]
        cut = [spec_of(mesh, TOKEN_AXES, (), kind.CACHE_CUT) for kind in kinds]
        self._cache_specs = tuple(KeyValueCache(spec, spec) for spec in cut)  # type: ignore[arg-type]
        self._compiled = functools.cache(self._compile)

    def decode(
        self, caches: Caches, turn: Turn, settings: Settings, greedy: bool, reach: int = 0, all_logits: bool = False
    ) -> tuple[Caches, Outcome]:
        """Every place goes on by its turn.

        `greedy`: all temperatures are 0. `reach`: no sequence is longer than that afterwards, so that only so much of
        the caches is read; 0: all of it. `all_logits`: return those of all positions.
        """
        step = self._compiled(*turn.ids.shape, greedy, reach, all_logits)
        return step(self.weights, caches, turn, None, settings)

    def prefill(
        self,
        caches: Caches,
        turn: Turn,
        place: Int[Array, "R"],
        settings: Settings,
        greedy: bool,
        reach: int = 0,
    ) -> tuple[Caches, Outcome]:
        """One sequence on each part of the batch goes on by its turn, at a place of that part's own."""
        step = self._compiled(*turn.ids.shape, greedy, reach, False)
        return step(self.weights, caches, turn, place, settings)

    def lower(self, caches: Caches, length: int = 1) -> jax.stages.Lowered:
        """The step for greedy sequences that read all of their caches, before it is compiled; nothing is allocated.

        `length` 1: that of `decode`, for every sequence that `caches` have a place for. More: that of `prefill`, which
        goes on by so many tokens of one prompt on each part of the batch.
        """
        rows = self.shards if length > 1 else jax.tree.leaves(caches)[0].shape[0]
        numbers = jnp.zeros(rows, jnp.int32)
        turn = jax.eval_shape(lambda: Turn(jnp.zeros((rows, length), jnp.int32), numbers, numbers))
        settings = jax.eval_shape(lambda: Settings.of([GREEDY] * rows))
        step = self._compiled(rows, length, True, 0, False)
        place = jax.eval_shape(lambda: numbers) if length > 1 else None
        return step.lower(self.weights, caches, turn, place, settings)

    def dispatcher(self, rows: int) -> str:
        """What carries the choices of so many tokens at a time."""
        moe = self.run.moe
        return "chosen" if rows * moe.top_k <= max(self._few * moe.num_experts, moe.top_k) else "dropless"

    def _compile(self, rows: int, length: int, greedy: bool, reach: int, all_logits: bool) -> Any:
        forward = _Forward(self._run_of(rows * length, length), reach, all_logits)
        tokens, logits = spec_of(self.mesh, TOKEN_AXES), spec_of(self.mesh, TOKEN_AXES, (), (TENSOR,))
        on_mesh = jax.shard_map(
            forward,
            mesh=self.mesh,
            in_specs=(specs_of(self.weights), self._cache_specs, tokens, tokens),
            out_specs=(self._cache_specs, logits, logits, spec_of(self.mesh)),
        )

        def step(weights: Weights, caches: Caches, turn: Turn, place: Array | None, settings: Settings):
            caches, last, shown, choices = on_mesh(weights, caches, turn, place)
            drawn = draw(last[:, 0], settings, turn.start + turn.number, greedy)
            return caches, Outcome(drawn, shown, choices)

        return jax.jit(step, donate_argnums=1)

    def _run_of(self, tokens: int, length: int) -> RunConfig:
        """The run whose groups are the pieces, which drops nothing."""
        run = self.run
        if run.moe.num_experts:
            moe = dataclasses.replace(
                run.moe, dispatcher=self.dispatcher(tokens), group_size=length, exchange="auto", exchange_unique=False,
                exchange_nodes=1, exchange_bound=0.0,
            )  # fmt: skip
            run = with_grouped_matmul(dataclasses.replace(run, moe=moe), self.mesh.devices.flat[0])
        attention = dataclasses.replace(run.attention, kernel="xla")  # the others cannot read a cache
        return dataclasses.replace(run, attention=attention)


class _Forward:
    """The model on a device's own sequences, inside `shard_map`."""

    def __init__(self, run: RunConfig, reach: int, all_logits: bool):
        self.run, self.reach, self.all_logits = run, reach, all_logits
        self.dtype = jnp.dtype(run.model.dtype)
        model = blank(run)
        self.norm = nnx.split(model.norm, nnx.Param)[0]
        self.layers: list[nnx.GraphDef] = []
        for segment in model.segments:
            graphdefs = [nnx.split(block, nnx.Param, BalanceBias)[0] for block in segment.blocks]
            self.layers += graphdefs * segment.repeats

    def __call__(self, weights: Weights, caches: Caches, turn: Turn, place: Array | None):
        """Caches, logits of the last token [R, 1, v], those that were asked for [R, N, v], and the choices."""
        held = caches
        if place is not None:
            caches = jax.tree.map(lambda cache: lax.dynamic_slice_in_dim(cache, place[0], 1), held)
        x, caches, choices = self._hidden(weights, caches, turn)
        last = jnp.maximum(turn.number - 1, 0)[:, None, None]
        last_logits = self._logits(weights, jnp.take_along_axis(x, last, axis=1))
        shown = self._logits(weights, x) if self.all_logits else last_logits[:, :0]
        if place is not None:
            put = lambda whole, one: lax.dynamic_update_slice_in_dim(whole, one, place[0], axis=0)
            caches = jax.tree.map(put, held, caches)
        return caches, last_logits, shown, choices

    def _hidden(self, weights: Weights, caches: Caches, turn: Turn):
        """The normalised output of the last layer."""
        ids, start, count = turn
        model = self.run.model
        valid = jnp.arange(ids.shape[1]) < count[:, None]
        mask = Mask(start=start, count=count, reach=self.reach)
        context = Context(ids, valid, None, weights.step, place=mask.query_positions(ids.shape[1]))
        x = jnp.take(weights.embedding, ids, axis=0).astype(jnp.promote_types(self.dtype, jnp.float32))
        x = (x if model.embedding_scale == 1 else x * model.embedding_scale).astype(self.dtype)
        after, choices = [], []
        for graphdef, own, cache in zip(self.layers, weights.layers, caches, strict=True):
            block: Any = nnx.merge(graphdef, *own)
            x, sums, cache = block(x, mask, context, False, cache=cache)
            after.append(cache)
            if sums is not None:
                choices.append(sum_over(sums["choices"], TOKEN_AXES))
        norm: Any = nnx.merge(self.norm, weights.norm)
        return norm(x), tuple(after), tuple(choices)

    def _logits(self, weights: Weights, x: Float[Array, "R N D"]) -> Float[Array, "R N v"]:
        x = varying(x if self.run.model.logits_scale == 1 else x * self.run.model.logits_scale, [TENSOR])
        head = whole(weights.head, x.dtype)
        return jnp.matmul(x, head, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
