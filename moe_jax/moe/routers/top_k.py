"""The K best experts of each token, by softmax or (DeepSeek-V3) by sigmoid."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from moe_jax.config.rules import Violation
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.router import BIAS_OPTIONS, Choices, Router, TokenInfo, draw_per_group, pick, second_keys
from moe_jax.moe.routers.groups import best_groups


class TopK(Router):
    """The K most probable experts of the softmax; gates raw (OLMoE) or divided by their sum (Mixtral, Qwen3).

    Divided by their sum, the gates are the softmax over the chosen logits alone: choosing before the softmax and after
    it are the same.

    With `moe.bias_rate` experts are chosen by score plus balance bias (Wang et al. 2024, equation 3), within the best
    groups by these same sums (DeepSeek-V3); gates and probabilities never see the bias.
    """

    paper: ClassVar[str] = "raw: OLMoE (Muennighoff et al. 2024); divided: Shazeer et al. 2017, equations 3 and 5"
    options: ClassVar[frozenset[str]] = Router.options | {
        *BIAS_OPTIONS,
        *("normalize_gates", "routed_scaling", "null_experts"),
        *("expert_groups", "top_groups", "group_score"),
    }

    def choose(self, x, logits, info):
        """See `Router.choose`."""
        log_scores = self.log_scores(logits)
        expert = self.select(lax.stop_gradient(logits), lax.stop_gradient(log_scores), info)
        gate = self.gates(pick(log_scores, expert))
        return Choices(expert, gate, self.kept(gate, info.keys), jax.nn.softmax(log_scores))

    def log_scores(self, logits: Float[Array, "G T N"]) -> Float[Array, "G T N"]:
        """Logarithms of the scores, which increase with the logits."""
        return jax.nn.log_softmax(logits)

    def select(
        self, logits: Float[Array, "G T N"], log_scores: Float[Array, "G T N"], info: TokenInfo
    ) -> Int[Array, "G T K"]:
        """The K best experts (ties: the lower index first), by logits: scores can underflow to equal zeros."""
        moe, ranked, scores = self.moe, logits, jnp.exp(log_scores)
        if self.balance_bias is not None:
            ranked = scores = scores + self.balance_bias[...]
        if moe.expert_groups > 1:
            by, best = (scores, 2) if moe.group_score == "top2" else (ranked, 1)
            ranked = jnp.where(best_groups(by, moe.expert_groups, moe.top_groups, best), ranked, -jnp.inf)
        return lax.top_k(ranked, moe.top_k)[1]

    def gates(self, log_scores: Float[Array, "G T K"]) -> Float[Array, "G T K"]:
        """From the logarithms of the chosen scores."""
        gate = jax.nn.softmax(log_scores) if self.moe.normalize_gates else jnp.exp(log_scores)
        return gate * self.moe.routed_scaling

    def kept(self, gate: Float[Array, "G T K"], keys: Key[Array, "G"] | None) -> Bool[Array, "G T K"]:
        """Which choices the router does not let go."""
        return jnp.ones_like(gate, bool)


class Switch(TopK):
    """The most probable expert, its probability as gate.

    The probability is not divided by the sum over the choices: that sum is itself, the gate would be the constant 1 and
    the router would learn nothing from the task.
    """

    paper: ClassVar[str] = "Switch Transformer (Fedus et al. 2021), equations 1 and 2"
    required_top_k: ClassVar[int | None] = 1
    options: ClassVar[frozenset[str]] = Router.options | BIAS_OPTIONS


class GShard(TopK):
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
    def check(cls, moe, top_k, num_experts):
        """See `Router.check`."""
        default = MoEConfig.second_threshold
        if moe.second_threshold != default and moe.second_expert != "threshold":
            raise Violation(
                f"moe.second_threshold={moe.second_threshold} has no effect with moe.second_expert="
                f"{moe.second_expert!r}: leave it at {default}, or set moe.second_expert='threshold'"
            )

    def gates(self, log_scores):
        """See `TopK.gates`."""
        return jax.nn.softmax(log_scores)

    def kept(self, gate, keys):
        """See `TopK.kept`."""
        second = gate[..., 1]
        match self.moe.second_expert:
            case "threshold":
                keep = second >= self.moe.second_threshold
            case "random" if keys is not None:
                draw = draw_per_group(jax.random.uniform, second_keys(keys), second.shape[1:], gate.dtype)
                keep = draw < 2 * second
            case _:
                keep = jnp.ones_like(second, bool)
        return jnp.stack([jnp.ones_like(keep), keep], axis=-1)


class Sigmoid(TopK):
    """Each expert scored by itself, s = sigmoid(logit); gates are the chosen scores, raw or divided by their sum.

    The probabilities, for the balance loss, are s divided by its sum over all experts (equation 19).
    """

    paper: ClassVar[str] = "DeepSeek-V3 (DeepSeek-AI 2024), equations 12 to 20"

    def log_scores(self, logits):
        """See `TopK.log_scores`. As logarithms, sums of scores that all underflow can still be divided by."""
        return jax.nn.log_sigmoid(logits)
