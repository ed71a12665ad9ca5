import warnings

import pytest
from configurations import run_of

from moe_jax.config.schema import flatten
from moe_jax.resolve.describe import describe, markdown, warn

MOE = {
    "model.num_layers": 4,
    "moe.num_experts": 2,
    "moe.every": 2,
    "moe.group_size": 3,
    "moe.capacity_factor": 1.1,
    "moe.eval_capacity_factor": 0.5,
    "data.sequence_length": 6,
}


def test_capacity_by_hand():
    lines = describe(run_of(MOE))
    assert "MoE: 2 of 4 layers, 2 experts, top 1, groups of 3 tokens" in lines
    # 1.1 * 3 / 2 = 1.65 is 2 slots, and 2 * 2 / 3 = 1.333; all three tokens on one expert, in 2 of 8 cases, lose one.
    training = "capacity in training: C = 2 slots an expert and group, factor 1.1 (effective 1.333); "
    assert f"{training}uniform random routing would drop 8.33%" in lines
    # 0.5 * 3 / 2 = 0.75 is 1 slot, and 1 * 2 / 3 = 0.667; 2 of 8 cases lose two tokens of three and 6 of 8 lose one.
    evaluation = "capacity in evaluation: C = 1 slots an expert and group, factor 0.5 (effective 0.667); "
    assert f"{evaluation}uniform random routing would drop 41.67%" in lines


def test_layers_of_their_own_have_lines_of_their_own():
    fields = {"moe.num_experts": 4, "moe.num_experts_by_layer": (2, 4), "moe.group_size": 4, "moe.capacity_factor": 1.0}
    lines = [
        line for line in describe(run_of({**MOE, **fields, "data.sequence_length": 8})) if "in evaluation" not in line
    ]
    assert lines[2] == "MoE: 1 of 4 layers, 2 experts, top 1, groups of 4 tokens"
    assert lines[3].startswith("capacity in training: C = 2 slots")
    assert lines[4] == "MoE: 1 of 4 layers, 4 experts, top 1, groups of 4 tokens"
    assert lines[5].startswith("capacity in training: C = 1 slots")


def test_size_by_hand():
    fields = {"model.num_layers": 1, "model.d_model": 4, "model.d_ff": 8, "model.num_heads": 2, "model.num_kv_heads": 2}
    lines = describe(run_of({**fields, "model.vocab_size": 264, "data.sequence_length": 16}))
    # Attention 4 * 4 * 4, feed-forward 2 * 4 * 8, norms 3 * 4, embeddings 2 * 264 * 4.
    assert lines[0] == "parameters: 2,252 in all, 2,252 active for a token (2,112 of them embeddings)"
    # 6 a weight that is multiplied (64 + 64 + 264 * 4), and 12 * 16 * 4 for scores and values.
    assert lines[1] == (
        "FLOPs: 7,872 a token, forward and backward; 7,488 with the half of the scores that causal attention needs"
    )
    assert len(lines) == 2, "a dense model has no capacity"


def test_markdown_has_the_description_and_every_field():
    run = run_of(MOE)
    text = markdown(run)
    assert all(f"- {line}\n" in text for line in describe(run))
    assert all(f"| {name} | `{value!r}` |" in text for name, value in flatten(run).items())


EXPERT_CHOICE = {"moe.num_experts": 4, "moe.router": "expert_choice", "moe.balance_loss": 0.0}
SOFT = {**EXPERT_CHOICE, "moe.router": "soft", "moe.eval_capacity_factor": 1.25}
TOP_2 = {"moe.num_experts": 4, "moe.top_k": 2, "moe.router": "top_k"}


@pytest.mark.parametrize("fields", [EXPERT_CHOICE, SOFT], ids=["expert_choice", "soft"])
def test_what_fills_its_slots_drops_nothing(fields):
    line = next(line for line in describe(run_of(fields)) if line.startswith("capacity in training"))
    assert (
        line == "capacity in training: C = 80 slots an expert and group, factor 1.25 (effective 1.250); nothing drops"
    )


def test_as_many_slots_in_evaluation_are_no_surprise(recwarn):
    """0.3 * 32 / 4 and 0.28 * 32 / 4 are both 3 slots after rounding."""
    factors = {"moe.capacity_factor": 0.3, "moe.eval_capacity_factor": 0.28, "moe.group_size": 32}
    warn(run_of({**EXPERT_CHOICE, **factors}))
    assert not any("fills all slots" in str(warning.message) for warning in recwarn)


def test_null_experts_leave_fewer_choices_to_be_dropped():
    """Each of two tokens takes the one real expert in half of the cases: one choice is wanted on average. Both do in a
    quarter of them, and one slot is too few.
    """
    null = {"moe.num_experts": 1, "moe.null_experts": 1, "moe.router": "top_k", "moe.group_size": 2}
    lines = describe(run_of({**null, "moe.capacity_factor": 0.5, "data.sequence_length": 2}))
    assert any("C = 1 slots" in line and line.endswith("would drop 25.00%") for line in lines)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"moe.num_experts": 64, "moe.group_size": 32},
            r"moe\.capacity_factor=1\.25 gives less than one slot .* raise moe\.group_size=32",
        ),
        ({"moe.num_experts": 4, "moe.drop_order": "priority"}, r"moe\.drop_order='priority' lets later tokens"),
        ({**TOP_2, "moe.drop_order": "priority"}, r"moe\.drop_order='priority' lets later tokens"),
        ({**TOP_2, "moe.drop_order": "choice"}, r"moe\.drop_order='choice' .* moe\.drop_order='position' does not"),
        ({"moe.num_experts": 4, "moe.router": "sinkhorn"}, r"moe\.router='sinkhorn' lets later tokens .* in training"),
        (EXPERT_CHOICE, r"moe\.router='expert_choice' lets later tokens .* choose moe\.router='switch' or .*'top_k'"),
        (
            EXPERT_CHOICE,
            r"'expert_choice' fills all slots, .* 1\.25 experts .* and 2\.00 in evaluation: give both",
        ),
        (SOFT, r"moe\.router='soft' lets later tokens"),
        (
            {"train.steps": 6, "train.warmup_steps": 100},
            r"train\.warmup_steps=100 is not over at train\.steps=6: the last rate is 5% of train\.learning_rate",
        ),
    ],
)
def test_warns(fields, match):
    with pytest.warns(UserWarning, match=match):
        warn(run_of(fields))


@pytest.mark.parametrize(
    "fields",
    [
        TOP_2,
        {"moe.num_experts": 4, "moe.drop_order": "choice"},  # top-1: there is one choice, in order of position
        {"moe.num_experts": 40, "moe.group_size": 32},  # a nominal capacity of exactly 1
        {"moe.num_experts": 0, "moe.drop_order": "priority", "moe.capacity_factor": 1e-6},
    ],
)
def test_does_not_warn(fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(run_of(fields))
