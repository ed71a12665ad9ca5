"""What a router can use of `moe`: a field without effect is refused, not ignored."""

from collections.abc import Collection, Mapping

from moe_jax.config.rules import ConfigError, divides
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES
from moe_jax.moe.router import BIAS_OPTIONS
from moe_jax.moe.routers import ROUTERS

COLDEST = 1e-6  # router temperature
# Options that leave a layer alone whose router does not list them: it has no bias, and no sums for these losses.
ELSEWHERE = BIAS_OPTIONS | {"load_loss", "entropy_loss", "penalty", "penalty_loss"}


def check_router(moe: MoEConfig, name_of: Mapping[str, str], routers: Collection[str]) -> None:
    """Raises ConfigError on the first field that `moe.router` cannot use, or not so, in a layer of these settings.

    Args:
      moe: the settings of one layer.
      name_of: the fields that the layer has its values from: {"top_k": "moe.top_k_by_layer[2]", ...}.
      routers: those of all layers. What acts only where a router offers it (`ELSEWHERE`) may be set for one of them.
    """
    router, top_k, named = ROUTERS[moe.router], name_of["top_k"], f"{name_of['router']}={moe.router!r}"
    if moe.dispatcher not in ("auto", *router.dispatchers):
        raise ConfigError(
            f"moe.dispatcher={moe.dispatcher!r} cannot carry what {named} decides: use one of auto, "
            f"{', '.join(router.dispatchers)}"
        )
    if router.required_top_k not in (None, moe.top_k):
        raise ConfigError(
            f"{top_k}={moe.top_k} with {named}, which is top-{router.required_top_k}: set "
            f"{top_k}={router.required_top_k}, or use {name_of['router']}='top_k'"
        )
    if moe.top_k < router.least_top_k:
        raise ConfigError(
            f"{top_k}={moe.top_k} with {named}, which needs more choices: set {top_k}={router.least_top_k} or more"
        )
    _only_options(moe, named, routers)
    _temperature(moe)
    _penalty(moe)
    _bias_update(moe, named)
    _expert_groups(moe, top_k, name_of["num_experts"])
    router.check(moe, name_of)


def _only_options(moe: MoEConfig, named: str, routers: Collection[str]) -> None:
    """`named` is the layer's router as a user gave it: "moe.router='switch'"."""
    defaults = MoEConfig()
    elsewhere = ELSEWHERE & frozenset().union(*(ROUTERS[router].options for router in routers))
    for name in sorted(frozenset().union(*(router.options for router in ROUTERS.values()))):
        value, default = getattr(moe, name), getattr(defaults, name)
        if value != default and name not in ROUTERS[moe.router].options | elsewhere:
            able = ", ".join(known for known, router in ROUTERS.items() if name in router.options)
            raise ConfigError(
                f"moe.{name}={value!r} has no effect with {named}: leave it at {default!r}, or use one of {able}"
            )

    for name, value in ROUTERS[moe.router].fixed_fields.items():
        if getattr(moe, name) != value:
            raise ConfigError(
                f"moe.{name}={getattr(moe, name)!r} with {named}, which works only with {value!r}: "
                f"set moe.{name}={value!r}"
            )


def _penalty(moe: MoEConfig) -> None:
    if bool(moe.penalty) != (moe.penalty_loss > 0):
        raise ConfigError(
            f"moe.penalty={moe.penalty!r} with moe.penalty_loss={moe.penalty_loss}: one names the loss and the other "
            "weighs it, set both or neither"
        )


def _bias_update(moe: MoEConfig, named: str) -> None:
    fitting = BIAS_UPDATES[moe.bias_update].routers
    if moe.bias_rate and "bias_rate" in ROUTERS[moe.router].options and fitting and moe.router not in fitting:
        raise ConfigError(
            f"moe.bias_update={moe.bias_update!r} with {named}: it is made for {', '.join(fitting)}, use one of these "
            "or another moe.bias_update"
        )


def _temperature(moe: MoEConfig) -> None:
    for name, value in (("temperature", moe.temperature), ("final_temperature", moe.final_temperature)):
        if value and value < COLDEST:
            raise ConfigError(f"moe.{name}={value} is too small for float32: use {COLDEST} or more")
    if moe.temperature_steps and not moe.final_temperature:
        raise ConfigError(
            f"moe.temperature_steps={moe.temperature_steps} without moe.final_temperature: set the temperature to go to"
        )
    if moe.final_temperature == moe.temperature:
        raise ConfigError(f"moe.final_temperature={moe.final_temperature} is moe.temperature: leave it at 0")


def _expert_groups(moe: MoEConfig, top_k: str, num_experts: str) -> None:
    limited = 0 < moe.top_groups < moe.expert_groups
    if not limited and (moe.expert_groups, moe.top_groups, moe.group_score) != (1, 0, "max"):
        raise ConfigError(
            f"moe.expert_groups={moe.expert_groups}, moe.top_groups={moe.top_groups} and moe.group_score="
            f"{moe.group_score!r} limit nothing: use 0 < moe.top_groups < moe.expert_groups, or leave all three alone"
        )
    if not limited:
        return
    divides("moe.expert_groups", moe.expert_groups, num_experts, moe.num_experts)
    size = moe.num_experts // moe.expert_groups
    if moe.top_k > moe.top_groups * size:
        raise ConfigError(
            f"{top_k}={moe.top_k} is more than the experts of moe.top_groups={moe.top_groups} groups of {size}: "
            "raise moe.top_groups"
        )
    if moe.group_score == "top2" and size < 2:
        raise ConfigError(
            f"moe.group_score='top2' with groups of one expert (moe.expert_groups={moe.expert_groups}): use 'max'"
        )
    if moe.null_experts:
        raise ConfigError(
            f"moe.null_experts={moe.null_experts} with moe.expert_groups={moe.expert_groups}: null experts are in no "
            "group, use one or the other"
        )
