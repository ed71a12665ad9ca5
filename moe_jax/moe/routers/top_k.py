"""The K best experts of each token, by softmax or (DeepSeek-V3) by sigmoid."""

from typing import ClassVar

import jax

from moe_jax.moe.router import BIAS_OPTIONS, Router
from moe_jax.moe.routers.selection import top_k_choices


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

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        return top_k_choices(logits, jax.nn.log_softmax(logits), self.moe, self.bias_of_scores())


class Switch(TopK):
    """The most probable expert, its probability as gate.

    The probability is not divided by the sum over the choices: that sum is itself, the gate would be the constant 1 and
    the router would learn nothing from the task.
    """

    paper: ClassVar[str] = "Switch Transformer (Fedus et al. 2021), equations 1 and 2"
    required_top_k: ClassVar[int | None] = 1
    options: ClassVar[frozenset[str]] = Router.options | BIAS_OPTIONS


class Sigmoid(TopK):
    """Each expert scored by itself, s = sigmoid(logit); gates are the chosen scores, raw or divided by their sum.

    The probabilities, for the balance loss, are s divided by its sum over all experts (equation 19).
    """

    paper: ClassVar[str] = "DeepSeek-V3 (DeepSeek-AI 2024), equations 12 to 20"

    def choose(self, x, logits, context):
        """See `Router.choose`. Scores are kept as logarithms: sums of scores that all underflow can still be divided
        by.
        """
        return top_k_choices(logits, jax.nn.log_sigmoid(logits), self.moe, self.bias_of_scores())
