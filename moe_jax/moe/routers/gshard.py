"""GShard's top-2 routing, with its second expert always, by threshold, or at random."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.router import BIAS_OPTIONS, Router, draw_per_group, second_keys
from moe_jax.moe.routers.selection import top_k_choices
from moe_jax.moe.routing import pick


class GShard(Router):
    """The two most probable experts, gates divided by their sum. GLaM is routed so too.

    Two things are as for all routers here, not as in the algorithm: the balance loss counts both choices (there: the
    first), and slots go by `moe.drop_order` (there: "choice", which looks ahead).

    `moe.second_expert` keeps the second expert always, from the gate `moe.second_threshold` on, or at random with
    probability min(1, 2 * its gate) in training, always in evaluation.
    """

    paper: ClassVar[str] = "GShard (Lepikhin et al. 2020), algorithm 1"
    required_top_k: ClassVar[int | None] = 2
    options: ClassVar[frozenset[str]] = Router.options | BIAS_OPTIONS | {"second_expert", "second_threshold"}

    @classmethod
    def check(cls, moe, name_of):
        """See `Router.check`."""
        default = MoEConfig.second_threshold
        if moe.second_threshold != default and moe.second_expert != "threshold":
            raise ConfigError(
                f"moe.second_threshold={moe.second_threshold} has no effect with moe.second_expert="
                f"{moe.second_expert!r}: leave it at {default}, or set moe.second_expert='threshold'"
            )

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        log_scores = jax.nn.log_softmax(logits)
        choices = top_k_choices(logits, log_scores, self.moe, self.bias_of_scores())
        gate = jax.nn.softmax(pick(log_scores, choices.expert))
        keep = keep_second(gate[..., 1], self.moe, context.keys)
        return choices._replace(gate=gate, kept=jnp.stack([jnp.ones_like(keep), keep], axis=-1))


def keep_second(second: Float[Array, "G T"], moe: MoEConfig, keys: Key[Array, "G"] | None) -> Bool[Array, "G T"]:
    """Which tokens keep their second expert, whose gate is `second`."""
    match moe.second_expert:
        case "threshold":
            return second >= moe.second_threshold
        case "random" if keys is not None:
            draw = draw_per_group(jax.random.uniform, second_keys(keys), second.shape[1:], second.dtype)
            return draw < 2 * second
        case _:
            return jnp.ones_like(second, bool)
