"""Configurations that cannot run, and the one line that each is refused with."""

import re

import pytest
from configurations import BY_LAYER, EXPERT_CHOICE, MOE, SOFT, refusal, run_of


def mesh(**sizes):
    return {f"mesh.{axis}": size for axis, size in sizes.items()}


BY_ROUTER = {**MOE, "moe.router": "top_k", "moe.top_k": 2, "moe.router_by_layer": ("noisy_top_k", "top_k")}
GROUPS = {**MOE, "moe.router": "top_k", "moe.top_k": 2, "moe.expert_groups": 2, "moe.top_groups": 1}
LATENT = {"attention.kind": "latent", "attention.kv_rank": 8, "attention.rope_dim": 4}
IMPOSSIBLE = [  # fields, and how the line begins ("..." stands for anything); on 8 devices if a mesh is among them
    # model
    ({"model.num_heads": 3}, "model.d_model=64 is not a multiple of model.num_heads=3: use model.d_model=63 or 66, or"),
    (
        {"model.num_kv_heads": 3},
        "model.num_heads=4 is not a multiple of model.num_kv_heads=3: use model.num_heads=3 or 6",
    ),
    ({"model.head_dim": 15}, "model.head_dim=15 is odd: ... use an even size"),
    ({"attention.kernel": "cudnn"}, "attention.kernel='cudnn' needs model.dtype='bfloat16', not 'float32': set one"),
    (
        {"attention.kernel": "cudnn", "model.dtype": "bfloat16", "data.mask_documents": True},
        "data.mask_documents=True with attention.kernel='cudnn', which cannot: use attention.kernel='xla'",
    ),
    (
        {"attention.chunk": 100},
        "data.sequence_length=128 is not a multiple of attention.chunk=100: use data.sequence_length=100 or 200",
    ),
    (
        {"data.sequence_length": 768, "moe.group_size": 768},
        "data.sequence_length=768 is not a multiple of model.loss_chunk=512: use data.sequence_length=512 or 1024, or",
    ),
    (
        {"attention.rope_fraction": 0.35},
        "model.head_dim=16 with attention.rope_fraction=0.35 turns 5 dimensions: ... even",
    ),
    ({"attention.rope_fraction": 1.5}, "attention.rope_fraction=1.5 is outside [0, 1]: choose"),
    (
        {"attention.window": 4, "attention.windows": (4, 0)},
        "attention.window=4 beside attention.windows=(4, 0): give one",
    ),
    (
        {"attention.rope_factor": 8.0},
        "attention.rope_factor=8.0 has no effect with attention.rope_scaling='': ... yarn",
    ),
    (
        {"attention.rope_scaling": "linear", "attention.rope_beta_fast": 9.0},
        "attention.rope_beta_fast=9.0 has no effect with attention.rope_scaling='linear': leave it ... of yarn",
    ),
    ({"attention.rope_scaling": "yarn"}, "attention.rope_original_length=0 must be positive: give"),
    (
        {"attention.rope_scaling": "yarn", "attention.rope_original_length": 8, "attention.rope_beta_slow": 33.0},
        "attention.rope_beta_slow=33.0 is above attention.rope_beta_fast=32.0: lower it",
    ),
    ({"attention.kv_rank": 8}, "attention.kv_rank=8 has no effect with attention.kind='grouped_query': leave it at 0"),
    ({"attention.kind": "latent"}, "attention.kv_rank=0 must be positive: give"),
    ({**LATENT, "attention.rope_dim": 3}, "attention.rope_dim=3 is odd: ... use an even size"),
    (
        {**LATENT, "model.num_kv_heads": 2},
        "model.num_kv_heads=2 with attention.kind='latent', ... model.num_kv_heads=4",
    ),
    ({**LATENT, "attention.rope_fraction": 0.5}, "attention.rope_fraction=0.5 with attention.kind='latent', ... at 1"),
    (
        {**LATENT, "attention.sinks": True},
        "attention.sinks=True with attention.kind='latent', which has none: leave it at",
    ),
    (
        {"attention.kernel": "cudnn", "model.dtype": "bfloat16", "attention.sinks": True},
        "attention.sinks=True with attention.kernel='cudnn', which has none: use 'xla'",
    ),
    # moe
    ({**MOE, "moe.shared_gate": True}, "moe.shared_gate=True with moe.num_shared_experts=0, ...: set"),
    ({**MOE, "moe.router": "top_k", "moe.top_k": 5}, "moe.top_k=5 is more than moe.num_experts=4: ... lower moe.top_k"),
    ({**MOE, "moe.top_k": 2}, "moe.top_k=2 with moe.router='switch', which is top-1: set moe.top_k=1, or use moe"),
    ({**MOE, "moe.router": "gshard"}, "moe.top_k=1 with moe.router='gshard', which is top-2: set moe.top_k=2, or"),
    (
        {**BY_LAYER, "moe.num_experts_by_layer": (2, 4, 4)},
        "moe.num_experts_by_layer=(2, 4, 4) has 3 entries for 2 MoE layers: give one each",
    ),
    (
        {**BY_LAYER, "moe.num_experts": 8},
        "moe.num_experts=8 is not the largest of moe.num_experts_by_layer=(2, 4): set moe.num_experts=4",
    ),
    (
        {**BY_LAYER, "moe.capacity_factor_by_layer": (1.0, 0.0), "moe.capacity_factor": 1.0},
        "moe.capacity_factor_by_layer[1]=0.0 must be positive: give",
    ),
    (
        {**BY_LAYER, "moe.router": "top_k", "moe.top_k": 3, "moe.top_k_by_layer": (3, 3)},
        "moe.top_k_by_layer[0]=3 is more than moe.num_experts_by_layer[0]=2: ... lower moe.top_k_by_layer[0]",
    ),
    (
        {**BY_LAYER, "moe.router": "top_k", "moe.top_k": 2, "moe.top_k_by_layer": (1, 2), "moe.normalize_gates": True},
        "moe.normalize_gates=True with moe.top_k_by_layer[0]=1 ... set it to False",
    ),
    ({**MOE, "moe.shared_d_ff": 8}, "moe.shared_d_ff=8 with moe.num_shared_experts=0, so nothing ...: set"),
    (
        {**MOE, "moe.fine_grained": 2},
        "moe.fine_grained=2 with moe.router='switch', which is top-1, ...: use moe.",
    ),
    (
        {**MOE, "moe.router": "gshard", "moe.top_k": 2, "moe.second_threshold": 0.5},
        "moe.second_threshold=0.5 has no effect with moe.second_expert='always': leave it at 0.2, or set moe.second_e",
    ),
    ({**MOE, "moe.temperature": 1e-9}, "moe.temperature=1e-09 is too small for float32: use 1e-06 or more"),
    ({**MOE, "moe.final_temperature": 1e-9}, "moe.final_temperature=1e-09 is too small for float32: use 1e-06 or more"),
    ({**MOE, "moe.final_temperature": 1.0}, "moe.final_temperature=1.0 is moe.temperature: leave it at 0"),
    (
        {**EXPERT_CHOICE, "moe.balance_scope": "sequence"},
        "moe.balance_scope='sequence' ... works only with 'micro",
    ),
    ({**SOFT, "moe.balance_scope": "sequence"}, "moe.balance_scope='sequence' ... works only with 'micro"),
    ({**EXPERT_CHOICE, "moe.importance_loss": 0.1}, "moe.importance_loss=0.1 ... works only with 0.0: set"),
    (
        {**MOE, "moe.fine_grained": 3, "moe.router": "top_k", "moe.d_ff": 8},
        "moe.d_ff=8 is not a multiple of moe.fine_grained=3: use",
    ),
    (
        {**BY_LAYER, "moe.fine_grained": 2, "moe.num_experts_by_layer": (4, 8)},
        "moe.num_experts=4 is not the largest of moe.num_experts_by_layer=(4, 8): set moe.num_experts=8",
    ),
    (
        {**MOE, "moe.fine_grained": 2, "moe.router": "top_k", "moe.top_k": 9},
        "moe.top_k=9 is more than moe.num_experts=4: a token",
    ),
    (
        {**BY_LAYER, "moe.fine_grained": 2, "moe.first_dense": 5},
        "moe.first_dense=5 and moe.every=1 leave no MoE layer in model.num_layers=2: lower",
    ),
    (
        {**MOE, "moe.router": "top_k", "moe.fine_grained": 2, "moe.expert_groups": 3, "moe.top_groups": 1},
        "moe.num_experts=8 is not a multiple of moe.expert_groups=3: ... (experts as split by moe.fine_grained=2)",
    ),
    ({"moe.num_experts": -3, "moe.fine_grained": 2}, "moe.num_experts=-3 is negative: give 0 or more"),
    (
        {"moe.num_experts_by_layer": (4, 4)},
        "moe.num_experts_by_layer=(4, 4) with moe.num_experts=0, a dense model: set",
    ),
    (
        {**MOE, "moe.router_by_layer": ("switch", "top_k")},
        "moe.router='switch' is not the last of moe.router_by_layer=('switch', 'top_k'): set moe.router='top_k'",
    ),
    (
        {**BY_ROUTER, "moe.router_by_layer": ("switch", "top_k")},
        "moe.top_k=2 with moe.router_by_layer[0]='switch', which is top-1: set moe.top_k=1, or use "
        "moe.router_by_layer[0]='top_k'",
    ),
    (
        {**BY_ROUTER, "moe.top_k_by_layer": (1, 2)},
        "moe.top_k_by_layer[0]=1 with moe.router_by_layer[0]='noisy_top_k', which needs more choices: set moe.top_k_by",
    ),
    (
        {**BY_ROUTER, "moe.num_experts": 2},
        "moe.top_k=2 with moe.router_by_layer[0]='noisy_top_k' and moe.num_experts=2: ... raise moe.num_experts or",
    ),
    (
        {**BY_ROUTER, "moe.router_by_layer": ("hash", "top_k")},
        "moe.balance_loss=0.01 with moe.router_by_layer[0]='hash'",
    ),
    (
        {**BY_ROUTER, "moe.sinkhorn_iterations": 3},
        "moe.sinkhorn_iterations=3 has no effect with moe.router_by_layer[0]='noisy_top_k': leave",
    ),
    (
        {
            **SOFT,
            "moe.router": "expert_choice",
            "moe.router_by_layer": ("soft", "expert_choice"),
            "moe.dispatcher": "soft",
        },
        "moe.dispatcher='soft' cannot carry what moe.router_by_layer[1]='expert_choice' decides: use one of auto, ",
    ),
    (
        {**EXPERT_CHOICE, "moe.router_by_layer": ("soft", "expert_choice")},
        "moe.eval_capacity_factor=2.0 gives 512 slots with moe.router_by_layer[0]='soft', whose 320 slots are trained",
    ),
    ({**MOE, "moe.penalty_loss": 0.1}, "moe.penalty='' with moe.penalty_loss=0.1: ... set both or neither"),
    ({"moe.capacity_factor_by_layer": (1.0,)}, "moe.capacity_factor_by_layer=(1.0,) with moe.num_experts=0, a dense"),
    (
        {**MOE, "moe.router": "sinkhorn", "moe.bias_steps": 9},
        "moe.bias_steps=9 has no effect ...: leave it at 0, or use",
    ),
    ({**SOFT, "moe.eval_capacity_factor": 0.5}, "moe.eval_capacity_factor=0.5 gives 128 slots with moe.router='soft'"),
    ({"moe.top_k_by_layer": (1, 1)}, "moe.top_k_by_layer=(1, 1) with moe.num_experts=0, a dense model: set moe.num"),
    (
        {**SOFT, "model.num_layers": 2, "moe.capacity_factor": 1.25, "moe.capacity_factor_by_layer": (1.25, 0.5)},
        "moe.eval_capacity_factor=1.25 gives 320 slots ... whose 128 ... every layer one capacity factor",
    ),
    ({**MOE, "moe.bias_rate": 1e39}, "moe.bias_rate=1e+39 is outside [0, 1]: choose a value inside"),
    ({**MOE, "moe.bias_steps": 5}, "moe.bias_steps=5 with moe.bias_rate=0, which has no balance bias: raise"),
    (
        {**MOE, "moe.bias_update": "proportional"},
        "moe.bias_update='proportional' with moe.bias_rate=0, which has no balance bias: raise",
    ),
    ({**MOE, "moe.normalize_gates": True}, "moe.normalize_gates=True with moe.top_k=1 ... set it to False"),
    (
        {**MOE, "moe.routed_scaling": 2.5},
        "moe.routed_scaling=2.5 has no effect with moe.router='switch': leave it at 1.0",
    ),
    ({**MOE, "moe.router": "hash", "moe.jitter": 0.1}, "moe.jitter=0.1 has no effect with moe.router='hash': leave it"),
    (
        {**MOE, "moe.router": "hash"},
        "moe.balance_loss=0.01 with moe.router='hash', which works only with 0.0: set moe.ba",
    ),
    ({**MOE, "moe.load_loss": 0.1}, "moe.load_loss=0.1 has no effect ... or use one of noisy_top_k"),
    (
        {**MOE, "moe.router": "sinkhorn", "moe.bias_rate": 0.1},
        "moe.bias_rate=0.1 has no effect ...switch, gshard",
    ),
    (
        {**MOE, "moe.router": "noisy_top_k"},
        "moe.top_k=1 with moe.router='noisy_top_k', which needs more choices: set moe.top_k=2",
    ),
    (
        {**MOE, "moe.router": "noisy_top_k", "moe.top_k": 4},
        "moe.top_k=4 with moe.router='noisy_top_k' and moe.num_experts=4: ... raise moe.num_experts or lower moe.top_k",
    ),
    ({**MOE, "moe.temperature_steps": 9}, "moe.temperature_steps=9 without moe.final_temperature: set the temperature"),
    ({**GROUPS, "moe.expert_groups": 3}, "moe.num_experts=4 is not a multiple of moe.expert_groups=3: use"),
    ({**GROUPS, "moe.top_groups": 0}, "moe.expert_groups=2, moe.top_groups=0 and ... limit nothing: use 0 < moe.top"),
    ({**GROUPS, "moe.top_groups": 2}, "moe.expert_groups=2, moe.top_groups=2 and ... limit nothing: use 0 < moe.top"),
    ({**GROUPS, "moe.expert_groups": 1}, "moe.expert_groups=1, moe.top_groups=1 and ... limit nothing: use 0 < moe.t"),
    ({**GROUPS, "moe.top_k": 3}, "moe.top_k=3 is more than the experts of moe.top_groups=1 groups of 2: raise"),
    (
        {**GROUPS, "moe.expert_groups": 4, "moe.top_k": 1, "moe.group_score": "top2"},
        "moe.group_score='top2' with groups of one expert (moe.expert_groups=4): use 'max'",
    ),
    ({**GROUPS, "moe.null_experts": 1}, "moe.null_experts=1 with moe.expert_groups=2: ... use one or the other"),
    ({**MOE, "moe.every": 3}, "moe.first_dense=0 and moe.every=3 leave no MoE layer in model.num_layers=2: lower one"),
    (
        {**MOE, "moe.first_dense": 2},
        "moe.first_dense=2 and moe.every=1 leave no MoE layer in model.num_layers=2: lower",
    ),
    (
        {**MOE, "moe.group_size": 384},
        "moe.group_size=384 does not divide the 8192 tokens ...: use moe.group_size=256, or",
    ),
    (
        {**MOE, "moe.group_size": 16384},
        "moe.group_size=16384 does not divide the 8192 tokens ...: use moe.group_size=8192",
    ),
    (
        {**MOE, "moe.group_size": 2048, "train.accumulate": 2, **mesh(data=4, tensor=2)},
        "moe.group_size=2048 does not divide the 1024 tokens of a device (data.batch_size / train.accumulate=32 over "
        "mesh.data * mesh.fsdp * mesh.expert=4, data.sequence_length=128): use moe.group_size=1024",
    ),
    # data
    ({"data.source": "text"}, "data.source='text' is not a source: use stdlib, text:FOLDER_OR_GLOB"),
    ({"data.source": "pypi:django"}, "data.source='pypi:django' names no release: pin one"),
    ({"data.weights": (1.0,), "data.source": "stdlib,text:a"}, "data.weights=(1.0,) has 1 entries for 2 sources: give"),
    ({"data.weights": (1.0, 2.0)}, "data.weights=(1.0, 2.0) has 2 entries for 1 sources: give one each"),
    ({"data.weights": (0.0,)}, "data.weights=(0.0,) has an entry that is not positive: leave that source out"),
    ({"data.weights": (float("nan"),)}, "data.weights=(nan,) is not finite: give"),
    ({"data.holdout_fraction": 1.0}, "data.holdout_fraction=1.0 is outside (0, 1): 0.05 holds out one file in 20"),
    # train
    ({"seed": 2**32}, "seed=4294967296 does not fit into 32 bits: give less than 4294967296"),
    ({"train.learning_rate": 10**400}, "train.learning_rate is larger than any float: give less"),
    ({"train.final_learning_rate": 1.5}, "train.final_learning_rate=1.5 is outside [0, 1]: choose a value inside"),
    ({"train.b1": 1.0}, "train.b1=1.0 is outside [0, 1): choose a value inside"),
    (
        {"train.schedule": "wsd", "train.steps": 100, "train.warmup_steps": 50, "train.decay_steps": 51},
        "train.decay_steps=51 and train.warmup_steps=50 exceed train.steps=100: shorten one of them",
    ),
    *(
        (
            {"train.profile": profile},
            f"train.profile={profile} is not (first step, number of steps): for instance (20, 3)",
        )
        for profile in [(20,), (20, 3, 1), (-1, 3), (20, 0), (20, -3)]
    ),
    # mesh
    (
        {"train.accumulate": 3},
        "data.batch_size=64 is not a multiple of train.accumulate=3: use data.batch_size=63 or 66, or change",
    ),
    (
        {"data.batch_size": 12, **mesh(data=2, fsdp=4)},
        "data.batch_size=12 is not a multiple of mesh.data * mesh.fsdp * mesh.expert=8: use data.batch_size=8 or 16",
    ),
    (
        {"train.accumulate": 16, **mesh(data=8)},
        "data.batch_size / train.accumulate=4 is not a multiple of mesh.data * mesh.fsdp * mesh.expert=8: use",
    ),
    (
        {"moe.num_experts": 6, **mesh(expert=4, data=2)},
        "moe.num_experts=6 is not a multiple of mesh.expert=4: use moe.num_experts=4 or 8, or change mesh.expert",
    ),
    (
        {**BY_LAYER, **mesh(expert=4, data=2)},
        "moe.num_experts_by_layer[0]=2 is not a multiple of mesh.expert=4: use moe.num_experts_by_layer[0]=4",
    ),
    (
        {**MOE, "moe.num_shared_experts": 1, "moe.shared_d_ff": 6, **mesh(expert=4, data=2)},
        "moe.shared_d_ff=6 is not a multiple of mesh.tensor * mesh.fsdp * mesh.expert=4: use",
    ),
    (
        {**MOE, "moe.d_ff": 6, **mesh(tensor=4, data=2)},
        "moe.d_ff=6 is not a multiple of mesh.tensor * mesh.fsdp=4: use moe.d_ff=4 or 8",
    ),
    (
        {**MOE, "moe.d_ff": 6, "moe.num_shared_experts": 1, **mesh(expert=4, data=2)},
        "moe.num_shared_experts * moe.d_ff=6 is not a multiple of mesh.tensor * mesh.fsdp * mesh.expert=4: use",
    ),
    (
        {"model.vocab_size": 266, **mesh(tensor=4, data=2)},
        "model.vocab_size=266 is not a multiple of mesh.tensor=4: use model.vocab_size=264 or 268",
    ),
    (
        {"model.vocab_size": 266, **mesh(fsdp=4, data=2)},
        "model.vocab_size=266 is not a multiple of mesh.fsdp * mesh.expert=4: use model.vocab_size=264 or 268",
    ),
    (
        {"model.num_kv_heads": 2, **mesh(tensor=4, data=2)},
        "model.num_kv_heads=2 is not a multiple of mesh.tensor=4: use model.num_kv_heads=4, or change mesh.tensor",
    ),
    (
        {"model.d_model": 36, "model.num_heads": 2, "model.num_kv_heads": 2, **mesh(fsdp=8)},
        "model.d_model=36 is not a multiple of mesh.fsdp * mesh.expert=8: use model.d_model=32 or 40",
    ),
    (
        {"model.d_ff": 36, **mesh(fsdp=8)},
        "model.d_ff=36 is not a multiple of mesh.tensor * mesh.fsdp * mesh.expert=8: use model.d_ff=32 or 40",
    ),
    (
        {"model.num_heads": 2, "model.num_kv_heads": 2, "model.head_dim": 6, **mesh(fsdp=8)},
        "model.num_heads * model.head_dim=12 is not a multiple of mesh.tensor * mesh.fsdp * mesh.expert=8: use",
    ),
    (
        {**EXPERT_CHOICE, "moe.balance_loss": 0.01},
        "moe.balance_loss=0.01 with moe.router='expert_choice', which works only with 0.0: set moe.balance_loss=0.0",
    ),
    (
        {**EXPERT_CHOICE, "moe.drop_order": "priority"},
        "moe.drop_order='priority' with moe.router='expert_choice', ... set moe.drop_order='position'",
    ),
    (
        {**SOFT, "moe.dispatcher": "capacity"},
        "moe.dispatcher='capacity' cannot carry what moe.router='soft' decides: use one of auto, soft",
    ),
    (
        {**SOFT, "moe.eval_capacity_factor": 2.0},
        "moe.eval_capacity_factor=2.0 gives 512 slots with moe.router='soft', whose 320 slots are trained: give",
    ),
    ({**MOE, "moe.expert_dropout": 1.0}, "moe.expert_dropout=1.0 is outside [0, 1): choose a value inside"),
    (mesh(data=2), "mesh.data=2 x ... x mesh.tensor=1 needs 2 devices and 8 are present: set one size to -1"),
    (mesh(data=16), "mesh.data=16 x ... needs 16 devices and 8 are present: set one size to -1"),
    (
        mesh(data=-1, tensor=-1),
        "mesh.tensor=-1: only one mesh size can be -1, and mesh.data is: give mesh.tensor a number",
    ),
    (mesh(data=3, fsdp=-1), "mesh.fsdp=-1: the other axes take 3 devices, ... make their product a divisor of 8"),
]


def test_the_bound_that_is_asked_for_is_enough():
    """12 rows are balanced: 24 tokens of two choices, to four devices."""
    fields = {
        **MOE, "moe.router": "top_k", "moe.num_experts": 4, "moe.top_k": 2, "moe.dispatcher": "dropless",
        "moe.exchange": "all_to_all", "moe.group_size": 24, "data.sequence_length": 24, "data.batch_size": 4,
        "mesh.expert": 4, "train.accumulate": 1,
    }  # fmt: skip
    for bound in (0.05, 0.083):
        message = refusal({**fields, "moe.exchange_bound": bound}, 4)
        assert f"moe.exchange_bound={bound} leaves" in message
        assert "where balanced routing sends 12: raise it to 0.084 or more" in message
    assert run_of({**fields, "moe.exchange_bound": 0.084}, 4).moe.exchange_bound == 0.084


@pytest.mark.parametrize(("fields", "line"), IMPOSSIBLE, ids=lambda value: str(value)[:60])
def test_impossible(fields, line):
    message = refusal(fields, 8 if any(name.startswith("mesh.") for name in fields) else 1)
    assert re.match(".*".join(map(re.escape, line.split("..."))), message), message
