"""The next token of each sequence from its logits, each by settings and a seed of its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from moe_jax.config.rules import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a sequence's tokens are drawn. What `temperature` leaves is cut by `top_k`, then `top_p`, then `min_p`."""

    temperature: float = 0.0  # divides the logits; 0: the likeliest token
    top_k: int = 0  # the likeliest so many tokens; 0: all
    top_p: float = 1.0  # the fewest tokens whose probabilities reach it (Holtzman et al. 2020)
    min_p: float = 0.0  # those at least so likely, in parts of the likeliest (Nguyen et al. 2024)
    seed: int = 0

    def check(self, where: str = "--") -> None:
        """Raises ConfigError for values that no draw can follow; `where` stands in front of a field's name."""
        rules = {
            "temperature": (0 <= self.temperature <= 1e30, "from 0 to 1e30"),
            "top_k": (0 <= self.top_k < 2**31, "0 or more, less than 2147483648"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "seed": (0 <= self.seed < 2**32, "from 0 to 4294967295"),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ConfigError(f"{where}{name}={getattr(self, name)}: give {wanted}")


GREEDY = Sampling()


class Settings(NamedTuple):
    """`Sampling` of R sequences, as arrays."""

    temperature: Float[Array, "R"]
    top_k: Int[Array, "R"]
    top_p: Float[Array, "R"]
    min_p: Float[Array, "R"]
    seed: UInt32[Array, "R"]

    @staticmethod
    def of(samplings: Sequence[Sampling]) -> "Settings":
        """From one for each sequence."""
        types: Any = ("float32", "int32", "float32", "float32", "uint32")
        columns = zip(*map(dataclasses.astuple, samplings), strict=True)
        return Settings(*(jnp.asarray(column, dtype) for column, dtype in zip(columns, types, strict=True)))


class Drawn(NamedTuple):
    """The next token of each sequence."""

    token: Int[Array, "R"]
    log_probability: Float[Array, "R"]  # by the model itself, at temperature 1 and with nothing cut


def draw(logits: Float[Array, "R V"], settings: Settings, position: Int[Array, "R"], greedy: bool) -> Drawn:
    """The next tokens. The noise of a sequence is a function of its seed and of the token's position alone, so that
    its neighbours in the batch change nothing. `greedy`: every temperature is 0.
    """
    logits = logits.astype(jnp.float32)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if not greedy:
        drawn = jax.vmap(_draw_one)(logits, settings, position)
        token = jnp.where(settings.temperature > 0, drawn, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return Drawn(token, chosen - jax.nn.logsumexp(logits, axis=-1))


def _draw_one(logits: Float[Array, "V"], settings: Settings, position: Int[Array, ""]) -> Int[Array, ""]:
    order = jnp.argsort(-logits)
    likeliest_first = logits[order] / jnp.where(settings.temperature > 0, settings.temperature, 1)
    kept = left_by(likeliest_first, settings)
    key = jax.random.fold_in(jax.random.key(settings.seed), position)
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)[order]  # a token's own draw, wherever it stands
    return order[jnp.argmax(jnp.where(kept, likeliest_first + noise, -jnp.inf))].astype(jnp.int32)


def left_by(scaled: Float[Array, "V"], settings: Settings) -> Bool[Array, "V"]:
    """Which tokens top_k, top_p and min_p leave, of logits from the largest to the smallest; at least the first."""
    rank = jnp.arange(scaled.shape[0])
    kept = (rank < settings.top_k) | (settings.top_k == 0)
    probability = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf))
    kept &= (jnp.cumsum(probability) - probability < settings.top_p) | (settings.top_p >= 1)
    kept &= probability >= settings.min_p * probability[0]
    return kept | (rank == 0)
