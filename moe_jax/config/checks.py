"""What a valid run satisfies, in the order a user would meet it. Each check names field, value and remedy."""

import math
from collections.abc import Callable

from moe_jax.config.capacity import capacity
from moe_jax.config.layers import BY_LAYER, moe_by_layer, num_moe_layers
from moe_jax.config.router_checks import check_router
from moe_jax.config.rules import Violation, divides, one_of, positive
from moe_jax.config.schema import MoEConfig, RunConfig, flatten
from moe_jax.data.sources import parse_sources
from moe_jax.models.attention import ATTENTION
from moe_jax.models.block import REMAT
from moe_jax.moe.balance import BALANCE_SCOPES
from moe_jax.moe.balance_bias import BIAS_UPDATES
from moe_jax.moe.dispatch import DISPATCHERS
from moe_jax.moe.feed_forward import ACTIVATIONS
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.routers import ROUTERS

DTYPES = ("float32", "bfloat16", "float64")
OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "rsqrt", "wsd", "constant")
GROUP_SCORES = ("max", "top2")
ROUTER_DTYPES = ("float32", "bfloat16")
SECOND_EXPERT = ("always", "threshold", "random")
TOKENIZERS = ("bytes", "bpe")


def check(run: RunConfig, num_devices: int) -> None:
    """Raises Violation on the first condition that does not hold."""
    for one in (_numbers, _sizes, _choices, _ranges, _model, _moe, _data, _train, _mesh):
        one(run)
    devices = run.mesh.data * run.mesh.fsdp * run.mesh.expert * run.mesh.tensor
    if devices != num_devices:
        raise Violation(
            f"mesh.data={run.mesh.data} x mesh.fsdp={run.mesh.fsdp} x mesh.expert={run.mesh.expert} x "
            f"mesh.tensor={run.mesh.tensor} needs {devices} devices and {num_devices} are present: set one size to -1 "
            "to take what remains"
        )


def _between(name: str, value: int | float, low: int | float, high: int | float) -> None:
    if not low <= value <= high:
        raise Violation(f"{name}={value} is outside [{low}, {high}]: choose a value inside")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise Violation(f"{name}={value} is outside [0, 1): choose a value inside")


def _not_negative(name: str, value: int | float) -> None:
    if not value >= 0:
        raise Violation(f"{name}={value} is negative: give 0 or more")


def _each(run: RunConfig, names: str, rule: Callable[[str, int | float], None]) -> None:
    for name in names.split():
        section, field = name.split(".")
        rule(name, getattr(getattr(run, section), field))


def _numbers(run: RunConfig) -> None:
    for name, value in flatten(run).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise Violation(f"{name}={value} is not finite: give a finite number")


def _sizes(run: RunConfig) -> None:
    _each(
        run,
        "model.num_layers model.d_model model.d_ff model.num_heads model.num_kv_heads model.head_dim model.vocab_size "
        "model.attention_chunk model.loss_chunk moe.top_k moe.every moe.d_ff moe.group_size moe.exchange_chunks "
        "moe.expert_groups moe.sinkhorn_iterations data.sequence_length data.batch_size train.steps train.accumulate "
        "log.every checkpoint.every checkpoint.keep mesh.data mesh.fsdp mesh.expert mesh.tensor",
        positive,
    )
    _each(
        run,
        "moe.num_experts moe.first_dense moe.num_shared_experts moe.shared_d_ff moe.null_experts moe.top_groups "
        "moe.temperature_steps moe.bias_steps data.max_bytes train.warmup_steps train.decay_steps eval.every "
        "eval.batches",
        _not_negative,
    )
    _not_negative("seed", run.seed)
    if run.seed >= 2**32:
        raise Violation(f"seed={run.seed} does not fit into 32 bits: give less than {2**32}")


def _choices(run: RunConfig) -> None:
    one_of("model.activation", run.model.activation, ACTIVATIONS)
    one_of("model.attention", run.model.attention, ATTENTION)
    one_of("model.dtype", run.model.dtype, DTYPES)
    one_of("model.remat", run.model.remat, REMAT)
    one_of("moe.activation", run.moe.activation, ACTIVATIONS)
    one_of("moe.router", run.moe.router, ROUTERS)
    one_of("moe.exchange_dtype", run.moe.exchange_dtype, ("", "float32", "bfloat16"))
    one_of("moe.dispatcher", run.moe.dispatcher, DISPATCHERS)
    one_of("moe.drop_order", run.moe.drop_order, DROP_ORDERS)
    one_of("moe.group_score", run.moe.group_score, GROUP_SCORES)
    one_of("moe.router_dtype", run.moe.router_dtype, ROUTER_DTYPES)
    one_of("moe.second_expert", run.moe.second_expert, SECOND_EXPERT)
    one_of("moe.balance_scope", run.moe.balance_scope, BALANCE_SCOPES)
    one_of("moe.bias_update", run.moe.bias_update, BIAS_UPDATES)
    one_of("data.tokenizer", run.data.tokenizer, TOKENIZERS)
    one_of("train.optimizer", run.train.optimizer, OPTIMIZERS)
    one_of("train.schedule", run.train.schedule, SCHEDULES)


def _ranges(run: RunConfig) -> None:
    _each(
        run,
        "model.rope_theta model.norm_eps model.init_scale moe.capacity_factor moe.eval_capacity_factor "
        "moe.routed_scaling moe.temperature train.learning_rate train.eps",
        positive,
    )
    _each(
        run,
        "moe.balance_loss moe.importance_loss moe.load_loss moe.z_loss moe.final_temperature "
        "train.weight_decay train.clip_norm",
        _not_negative,
    )
    _each(run, "train.final_learning_rate moe.second_threshold moe.bias_rate", lambda n, v: _between(n, v, 0, 1))
    _each(run, "train.b1 train.b2 moe.jitter moe.expert_dropout", _below_one)
    if not 0 < run.data.holdout_fraction < 1:
        raise Violation(
            f"data.holdout_fraction={run.data.holdout_fraction} is outside (0, 1): 0.05 holds out one file in 20"
        )


def _model(run: RunConfig) -> None:
    model = run.model
    divides("model.num_kv_heads", model.num_kv_heads, "model.num_heads", model.num_heads)
    if model.head_dim % 2:
        raise Violation(f"model.head_dim={model.head_dim} is odd: rotary positions turn pairs, use an even size")
    length = run.data.sequence_length
    chunks = {"model.loss_chunk": model.loss_chunk}
    if model.attention == "xla":
        chunks["model.attention_chunk"] = model.attention_chunk
    for name, chunk in chunks.items():
        divides(name, min(chunk, length), "data.sequence_length", length)
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise Violation(f"model.attention='cudnn' needs model.dtype='bfloat16', not {model.dtype!r}: set one")
    if model.attention == "cudnn" and run.data.mask_documents:
        raise Violation(
            "data.mask_documents=True with model.attention='cudnn', which cannot: use model.attention='xla'"
        )


def check_before_split(run: RunConfig) -> None:
    """Raises Violation on what `moe.fine_grained` would multiply and then be named in other numbers than were given."""
    _each(run, "moe.top_k moe.every moe.d_ff", positive)
    _each(run, "moe.num_experts moe.first_dense", _not_negative)
    _has_moe_layers(run)
    _lists_by_layer(run)
    for layer, one in enumerate(moe_by_layer(run)):
        _top_k(one, {field: _by_layer_name(run, field, layer) for field in BY_LAYER})


def _moe(run: RunConfig) -> None:
    moe = run.moe
    for name in (f"{field}_by_layer" for field in BY_LAYER):
        if moe.num_experts == 0 and getattr(moe, name):
            raise Violation(
                f"moe.{name}={getattr(moe, name)} with moe.num_experts=0, a dense model: set moe.num_experts to "
                "the most experts of a layer, or leave the list empty"
            )
    if moe.num_experts == 0:
        return
    _has_moe_layers(run)
    _lists_by_layer(run)
    for layer, one in enumerate(moe_by_layer(run)):
        name_of = {field: _by_layer_name(run, field, layer) for field in BY_LAYER}
        _moe_layer(one, name_of)
    if moe.shared_d_ff and not moe.num_shared_experts:
        raise Violation(
            f"moe.shared_d_ff={moe.shared_d_ff} with moe.num_shared_experts=0, so nothing has that size: set "
            "moe.num_shared_experts=1"
        )
    _balancing(run)


def _has_moe_layers(run: RunConfig) -> None:
    moe = run.moe
    if moe.first_dense + moe.every > run.model.num_layers:
        raise Violation(
            f"moe.first_dense={moe.first_dense} and moe.every={moe.every} leave no MoE layer in model.num_layers="
            f"{run.model.num_layers}: lower one of them, or set moe.num_experts=0 for a dense model"
        )


def _lists_by_layer(run: RunConfig) -> None:
    """Each list has an entry for each MoE layer, and the field that it varies, which stands for all, is the largest."""
    for field in BY_LAYER:
        name, values = f"moe.{field}_by_layer", getattr(run.moe, f"{field}_by_layer")
        if not values:
            continue
        if len(values) != num_moe_layers(run):
            raise Violation(
                f"{name}={values} has {len(values)} entries for {num_moe_layers(run)} MoE layers: give one each"
            )
        for layer, value in enumerate(values):
            positive(f"{name}[{layer}]", value)
        if getattr(run.moe, field) != max(values):
            raise Violation(
                f"moe.{field}={getattr(run.moe, field)} is not the largest of {name}={values}: set moe.{field}="
                f"{max(values)}"
            )


def _by_layer_name(run: RunConfig, field: str, layer: int) -> str:
    """The field where MoE layer `layer` has its value from."""
    return f"moe.{field}_by_layer[{layer}]" if getattr(run.moe, f"{field}_by_layer") else f"moe.{field}"


def _moe_layer(moe: MoEConfig, name_of: dict[str, str]) -> None:
    """The settings of one layer; `name_of`: where it has its values from."""
    _top_k(moe, name_of)
    top_k, num_experts = name_of["top_k"], name_of["num_experts"]
    for name, factor in (
        (name_of["capacity_factor"], moe.capacity_factor),
        ("moe.eval_capacity_factor", moe.eval_capacity_factor),
    ):
        slots = capacity(factor, moe.top_k, moe.group_size, moe.num_experts)
        if moe.exchange_chunks > slots:
            raise Violation(
                f"moe.exchange_chunks={moe.exchange_chunks} is more than the C={slots} slots of {name}: lower it"
            )
    if moe.normalize_gates and moe.top_k == 1:
        raise Violation(
            f"moe.normalize_gates=True with {top_k}=1 makes every gate the constant 1 and leaves the router without a "
            "gradient: set it to False"
        )
    check_router(moe, top_k, num_experts)


def _top_k(moe: MoEConfig, name_of: dict[str, str]) -> None:
    top_k, num_experts = name_of["top_k"], name_of["num_experts"]
    if moe.top_k > moe.num_experts:
        raise Violation(
            f"{top_k}={moe.top_k} is more than {num_experts}={moe.num_experts}: a token visits an expert once, "
            f"lower {top_k} or raise {num_experts}"
        )


def _balancing(run: RunConfig) -> None:
    """Each setting of a way to balance has something to act on."""
    moe = run.moe
    for name, unused in (("bias_steps", 0), ("bias_update", "sign")):
        if not moe.bias_rate and getattr(moe, name) != unused:
            raise Violation(
                f"moe.{name}={getattr(moe, name)!r} with moe.bias_rate=0, which has no balance bias: raise "
                "moe.bias_rate"
            )


def _data(run: RunConfig) -> None:
    data = run.data
    try:
        sources = parse_sources(data)
    except ValueError as error:
        raise Violation(str(error)) from None
    if data.weights and len(data.weights) != len(sources):
        raise Violation(
            f"data.weights={data.weights} has {len(data.weights)} entries for {len(sources)} sources: give one each"
        )
    if any(not weight > 0 for weight in data.weights):
        raise Violation(f"data.weights={data.weights} has an entry that is not positive: leave that source out")


def _train(run: RunConfig) -> None:
    train = run.train
    divides("train.accumulate", train.accumulate, "data.batch_size", run.data.batch_size)
    if train.schedule == "wsd" and train.warmup_steps + train.decay_steps > train.steps:
        raise Violation(
            f"train.decay_steps={train.decay_steps} and train.warmup_steps={train.warmup_steps} exceed "
            f"train.steps={train.steps}: shorten one of them"
        )
    if train.profile and (len(train.profile) != 2 or min(train.profile) < 0 or train.profile[1] == 0):
        raise Violation(f"train.profile={train.profile} is not (first step, number of steps): for instance (20, 3)")


def _mesh(run: RunConfig) -> None:
    """Sizes that the mesh cuts have to divide."""
    mesh, model, moe, data = run.mesh, run.model, run.moe, run.data
    shards = mesh.data * mesh.fsdp * mesh.expert
    weights = mesh.fsdp * mesh.expert
    batch = data.batch_size // run.train.accumulate
    batch_name = "data.batch_size" if run.train.accumulate == 1 else "data.batch_size / train.accumulate"
    divides("mesh.data * mesh.fsdp * mesh.expert", shards, batch_name, batch)
    divides("mesh.fsdp * mesh.expert", weights, "model.d_model", model.d_model)
    divides("mesh.fsdp * mesh.expert", weights, "model.vocab_size", model.vocab_size)
    divides("mesh.tensor", mesh.tensor, "model.num_kv_heads", model.num_kv_heads)
    divides("mesh.tensor", mesh.tensor, "model.vocab_size", model.vocab_size)
    divides("mesh.tensor * mesh.fsdp * mesh.expert", mesh.tensor * weights, "model.d_ff", model.d_ff)
    divides(
        "mesh.tensor * mesh.fsdp * mesh.expert",
        mesh.tensor * weights,
        "model.num_heads * model.head_dim",
        model.num_heads * model.head_dim,
    )
    if moe.num_experts:
        tokens = batch // shards * data.sequence_length
        if tokens % moe.group_size:
            near = max(size for size in range(1, min(moe.group_size, tokens) + 1) if tokens % size == 0)
            raise Violation(
                f"moe.group_size={moe.group_size} does not divide the {tokens} tokens of a device ({batch_name}={batch}"
                f" over mesh.data * mesh.fsdp * mesh.expert={shards}, data.sequence_length={data.sequence_length}): "
                f"use moe.group_size={near}, or another divisor"
            )
        for layer, one in enumerate(moe_by_layer(run)):
            divides("mesh.expert", mesh.expert, _by_layer_name(run, "num_experts", layer), one.num_experts)
        divides("mesh.tensor * mesh.fsdp", mesh.tensor * mesh.fsdp, "moe.d_ff", moe.d_ff)
        product = "moe.num_shared_experts * moe.d_ff"
        shared = product if moe.shared_d_ff == moe.num_shared_experts * moe.d_ff else "moe.shared_d_ff"
        divides("mesh.tensor * mesh.fsdp * mesh.expert", mesh.tensor * weights, shared, moe.shared_d_ff)
