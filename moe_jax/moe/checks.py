"""What section `moe` of a run has to satisfy."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from moe_jax.config.layers import BY_LAYER, moe_by_layer, num_moe_layers
from moe_jax.config.rules import ConfigError, below_one, between, each, not_negative, one_of, positive
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES
from moe_jax.moe.dispatchers import DISPATCHERS
from moe_jax.moe.exchange_checks import check_bound, check_exchange, check_nodes
from moe_jax.moe.feed_forward import ACTIVATIONS
from moe_jax.moe.grouped_matmul import IMPLEMENTATIONS
from moe_jax.moe.losses import BALANCE_SCOPES
from moe_jax.moe.penalties import PENALTIES
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router_checks import check_router
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.checks import TOKEN_SHARDS, Size, micro_batch, token_shards

CHOICES: Mapping[str, Iterable[str]] = {
    "activation": ACTIVATIONS,
    "router": ROUTERS,
    "exchange_dtype": ("", "float32", "bfloat16"),
    "exchange": ("auto", "all_to_all", "ragged", "all_gather"),
    "grouped_matmul": ("auto", *IMPLEMENTATIONS),
    "dispatcher": ("auto", *(name for name, one in DISPATCHERS.items() if one.trains)),
    "drop_order": DROP_ORDERS,
    "group_score": ("max", "top2"),
    "router_dtype": ("float32", "bfloat16"),
    "second_expert": ("always", "threshold", "random"),
    "balance_scope": BALANCE_SCOPES,
    "bias_update": BIAS_UPDATES,
    "penalty": ("", *PENALTIES),
}


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition of section `moe` that does not hold."""
    _fields(run)
    _layers(run)
    if run.moe.num_experts:
        _groups(run)
        check_nodes(run)
        for moe in moe_by_layer(run):
            check_bound(moe, run)


def _fields(run: RunConfig) -> None:
    each(
        run,
        "moe.top_k moe.every moe.d_ff moe.group_size moe.exchange_chunks moe.exchange_nodes moe.expert_groups "
        "moe.sinkhorn_iterations moe.capacity_factor moe.eval_capacity_factor moe.routed_scaling moe.temperature "
        "moe.top_p",
        positive,
    )
    each(
        run,
        "moe.num_experts moe.first_dense moe.num_shared_experts moe.shared_d_ff moe.exchange_bound moe.null_experts "
        "moe.top_groups moe.temperature_steps moe.bias_steps moe.balance_loss moe.importance_loss moe.load_loss "
        "moe.z_loss moe.entropy_loss moe.penalty_loss moe.final_temperature moe.target_experts",
        not_negative,
    )
    for field, known in CHOICES.items():
        one_of(f"moe.{field}", getattr(run.moe, field), known)
    each(run, "moe.second_threshold moe.bias_rate", lambda name, value: between(name, value, 0, 1))
    each(run, "moe.jitter moe.expert_dropout", below_one)


def check_before_split(run: RunConfig) -> None:
    """Raises ConfigError on what `moe.fine_grained` multiplies: later it would be named in numbers that nobody gave."""
    each(run, "moe.top_k moe.every moe.d_ff", positive)
    each(run, "moe.num_experts moe.first_dense", not_negative)
    _has_moe_layers(run)
    _lists_by_layer(run)
    for layer, one in enumerate(moe_by_layer(run)):
        _top_k(one, {field: by_layer_name(run, field, layer) for field in BY_LAYER})


def _layers(run: RunConfig) -> None:
    moe = run.moe
    for name in (f"{field}_by_layer" for field in BY_LAYER):
        if moe.num_experts == 0 and getattr(moe, name):
            raise ConfigError(
                f"moe.{name}={getattr(moe, name)} with moe.num_experts=0, a dense model: set moe.num_experts to "
                "the most experts of a layer, or leave the list empty"
            )
    if moe.num_experts == 0:
        return
    _has_moe_layers(run)
    _lists_by_layer(run)
    routers = {one.router for one in moe_by_layer(run)}
    for layer, one in enumerate(moe_by_layer(run)):
        name_of = {field: by_layer_name(run, field, layer) for field in BY_LAYER}
        _moe_layer(one, name_of, routers)
    if moe.shared_d_ff and not moe.num_shared_experts:
        raise ConfigError(
            f"moe.shared_d_ff={moe.shared_d_ff} with moe.num_shared_experts=0, so nothing has that size: set "
            "moe.num_shared_experts=1"
        )
    if moe.shared_gate and not moe.shared_d_ff:
        raise ConfigError(
            "moe.shared_gate=True with moe.num_shared_experts=0, so there is nothing to gate: set "
            "moe.num_shared_experts=1"
        )
    _balancing(run)


def _has_moe_layers(run: RunConfig) -> None:
    moe = run.moe
    if moe.first_dense + moe.every > run.model.num_layers:
        raise ConfigError(
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
            raise ConfigError(
                f"{name}={values} has {len(values)} entries for {num_moe_layers(run)} MoE layers: give one each"
            )
        if field == "router":
            _routers_by_layer(run)
            continue
        for layer, value in enumerate(values):
            positive(f"{name}[{layer}]", value)
        if getattr(run.moe, field) != max(values):
            raise ConfigError(
                f"moe.{field}={getattr(run.moe, field)} is not the largest of {name}={values}: set moe.{field}="
                f"{max(values)}"
            )


def _routers_by_layer(run: RunConfig) -> None:
    values = run.moe.router_by_layer
    for layer, value in enumerate(values):
        one_of(f"moe.router_by_layer[{layer}]", value, ROUTERS)
    if run.moe.router != values[-1]:
        raise ConfigError(
            f"moe.router={run.moe.router!r} is not the last of moe.router_by_layer={values}: set moe.router="
            f"{values[-1]!r}"
        )


def by_layer_name(run: RunConfig, field: str, layer: int) -> str:
    """The field where MoE layer `layer` has its value from."""
    return f"moe.{field}_by_layer[{layer}]" if getattr(run.moe, f"{field}_by_layer") else f"moe.{field}"


def _moe_layer(moe: MoEConfig, name_of: dict[str, str], routers: Collection[str]) -> None:
    """Checks the settings of one layer, with the arguments of `check_router`."""
    _top_k(moe, name_of)
    if moe.normalize_gates and moe.top_k == 1:
        raise ConfigError(
            f"moe.normalize_gates=True with {name_of['top_k']}=1 makes every gate the constant 1 and leaves the router "
            "without a gradient: set it to False"
        )
    check_router(moe, name_of, routers)
    check_exchange(moe, name_of["capacity_factor"])


def _top_k(moe: MoEConfig, name_of: dict[str, str]) -> None:
    top_k, num_experts = name_of["top_k"], name_of["num_experts"]
    if moe.top_k > moe.num_experts:
        raise ConfigError(
            f"{top_k}={moe.top_k} is more than {num_experts}={moe.num_experts}: a token visits an expert once, "
            f"lower {top_k} or raise {num_experts}"
        )


def _balancing(run: RunConfig) -> None:
    """Each setting of a way to balance has something to act on."""
    moe = run.moe
    for name, unused in (("bias_steps", 0), ("bias_update", "sign")):
        if not moe.bias_rate and getattr(moe, name) != unused:
            raise ConfigError(
                f"moe.{name}={getattr(moe, name)!r} with moe.bias_rate=0, which has no balance bias: raise "
                "moe.bias_rate"
            )


def _groups(run: RunConfig) -> None:
    """A device holds whole groups of tokens."""
    batch_name, batch = micro_batch(run)
    shards = token_shards(run.mesh)
    tokens = batch // shards * run.data.sequence_length
    if tokens % run.moe.group_size:
        near = max(size for size in range(1, min(run.moe.group_size, tokens) + 1) if tokens % size == 0)
        raise ConfigError(
            f"moe.group_size={run.moe.group_size} does not divide the {tokens} tokens of a device ({batch_name}={batch}"
            f" over {TOKEN_SHARDS}={shards}, data.sequence_length={run.data.sequence_length}): use "
            f"moe.group_size={near}, or another divisor"
        )


def sizes(run: RunConfig) -> Iterator[Size]:
    """The dimensions of the MoE layers that the mesh cuts."""
    moe = run.moe
    for layer, one in enumerate(moe_by_layer(run)):
        yield Size("expert", by_layer_name(run, "num_experts", layer), one.num_experts)
    if moe.num_experts:
        yield Size("expert_embed", "model.d_model", run.model.d_model)
        yield Size("expert_mlp_in", "moe.d_ff", moe.d_ff)
        product = "moe.num_shared_experts * moe.d_ff"
        shared = product if moe.shared_d_ff == moe.num_shared_experts * moe.d_ff else "moe.shared_d_ff"
        yield Size("mlp_in", shared, moe.shared_d_ff)
