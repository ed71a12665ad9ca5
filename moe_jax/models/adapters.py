"""Where the low-rank adapters of a model are."""

from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import LoraConfig
from moe_jax.config.weights import matches, present
from moe_jax.models.attention import ATTENTIONS
from moe_jax.moe.feed_forward import Experts, FeedForward
from moe_jax.moe.lora import ADAPTERS, Adapter

ADAPTABLE = (*ATTENTIONS.values(), FeedForward, Experts)  # modules whose `ADAPTABLE` matrices may have one


def add_adapters(model: nnx.Module, lora: LoraConfig, rngs: nnx.Rngs) -> None:
    """Gives an adapter to each matrix that `lora.targets` chooses. Raises ConfigError as `chosen` does."""
    found = list(_adaptable(model))
    targets = chosen([path for path, _, _ in found], lora)
    by_module: dict[int, tuple[nnx.Module, dict[str, Adapter]]] = {}
    for path, module, name in found:
        if path in targets:
            by_module.setdefault(id(module), (module, {}))[1][name] = Adapter(getattr(module, name), lora, rngs)
    for module, adapters in by_module.values():
        setattr(module, ADAPTERS, nnx.Dict(adapters))


def _adaptable(model: nnx.Module) -> Iterator[tuple[str, Any, str]]:
    """Path, module and name of each matrix that may have an adapter, in the order of paths."""
    modules: Any = nnx.iter_modules(model)
    for path, module in sorted(modules, key=lambda item: [str(part) for part in item[0]]):
        for name in module.ADAPTABLE if isinstance(module, ADAPTABLE) else ():
            if getattr(module, name, None) is not None:
                yield "/".join(map(str, (*path, name))), module, name


def chosen(paths: Sequence[str], lora: LoraConfig) -> set[str]:
    """Those of the adaptable matrices that have adapters. Raises ConfigError for a target that is none of them."""
    found: set[str] = set()
    for target in lora.targets:
        of_target = {path for path, matched in zip(paths, matches(paths, target), strict=True) if matched}
        if not of_target:
            raise ConfigError(
                f"lora.targets: {target!r} matches no matrix that may have an adapter: give some of "
                f"{', '.join(present(paths))}, or a pattern of paths like {paths[0]}"
            )
        found |= of_target
    return found
