"""docs/routers.md, written from the registries: papers, fields, losses, and causality as it is measured.

python -m moe_jax.analysis.router_docs > docs/routers.md
"""

import dataclasses
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from moe_jax.analysis.causality import TIGHT, Case, measure
from moe_jax.analysis.markdown import rows
from moe_jax.config.resolve import ConfigError, resolve
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.dispatch import DISPATCHERS
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router import Router
from moe_jax.moe.routers import ROUTERS

CONFIGS = Path(__file__).parents[2] / "configs" / "routers"
BALANCING = ("balance_loss", "importance_loss", "load_loss", "bias_rate", "z_loss")
HEADER = """# Routers

Written by `make docs` from the registry (`ROUTERS` in `moe_jax/moe/routers/__init__.py`); do not edit.

A router decides which experts a token goes to and with what weight: `--config.moe.router=NAME`. Each has a file in
`configs/routers/`. Every mesh gives the same result with every router: they work on whole groups, and a device holds
whole groups.

*Leak*: the fraction of tokens in the first half of a group whose output changes when the second half is replaced, at a
capacity factor of {tight} with random weights. A router or drop order that leaks is refused by no check and warned of:
decoders that use it see later tokens in training which they will not have when they generate.

Held-out loss and expert balance of twelve of the files, 200 steps each (one seed: the order is no result):

![Curves of the routers in TensorBoard](images/routers.png)
"""


def document() -> str:
    """The whole file."""
    parts = [HEADER.format(tight=TIGHT), *_overview(), "", "## Drop orders", "", *_drop_orders()]
    for name in ROUTERS:
        parts += ["", *_section(name)]
    return "\n".join(parts) + "\n"


def _overview() -> Iterator[str]:
    yield from rows(
        ("router", "paper", "K", "dispatchers", "causal", "leak in training", "in evaluation"),
        [_row(name, router) for name, router in ROUTERS.items()],
    )


def _row(name: str, router: type[Router]) -> tuple[str, ...]:
    leak = measure(_case(name).config())
    return (
        f"[`{name}`](#{name})",
        router.paper,
        str(router.required_top_k or "any"),
        ", ".join(f"`{dispatcher}`" for dispatcher in _dispatchers(router)),
        "yes" if router.causal else "in evaluation" if router.causal_in_evaluation else "no",
        f"{leak.training:.0%}",
        f"{leak.evaluation:.0%}",
    )


def _drop_orders() -> Iterator[str]:
    """With the plain router: others may add a leak of their own."""
    yield "Who gets a slot first where an expert has too few: `--config.moe.drop_order=NAME`, here with `top_k`."
    yield ""
    body = []
    for order, entry in DROP_ORDERS.items():
        for top_k in (1, 2):
            leak = measure(Case("top_k", top_k, order, "capacity").config())
            said = "yes" if entry.causal(top_k) else "no"
            body.append((f"`{order}`", str(top_k), said, f"{leak.training:.0%}", f"{leak.evaluation:.0%}"))
    yield from rows(("drop order", "K", "causal", "leak in training", "in evaluation"), body)
    for order, entry in DROP_ORDERS.items():
        yield ""
        yield f"`{order}`: {inspect.getdoc(entry.queue)}"


def _section(name: str) -> Iterator[str]:
    router = ROUTERS[name]
    fixed = router.fixed_fields
    yield f"## {name}"
    yield ""
    yield str(inspect.getdoc(router))
    yield ""
    yield f"- Paper: {router.paper}"
    losses = [f"`moe.{loss}`" for loss in BALANCING if _accepts(name, loss)]
    yield f"- Losses and balancing: {', '.join(losses) or 'none'}"
    if fixed:
        yield f"- Must be so: {', '.join(f'`moe.{field}={value!r}`' for field, value in fixed.items())}"
    for file in _config_files(name):
        run = file.removesuffix(".py")
        yield f"- Run it: `python experiments/train.py --config=configs/routers/{file} --workdir=runs/{run}`"
    fields = _fields(router)
    if fields:
        meanings, defaults = _meanings(), MoEConfig()
        yield ""
        yield from rows(
            ("field", "default", "meaning"),
            [(f"`moe.{field}`", f"`{getattr(defaults, field)!r}`", meanings[field]) for field in fields],
        )


def _accepts(name: str, loss: str) -> bool:
    """Whether a configuration with this router and loss is valid."""
    fields = dataclasses.asdict(_case(name).config())
    resolve({"moe": fields})
    try:
        resolve({"moe": {**fields, loss: 0.001}})
    except ConfigError:
        return False
    return True


def _dispatchers(router: type[Router]) -> list[str]:
    only = router.fixed_fields.get("dispatcher")
    return [str(only)] if only else list(DISPATCHERS)


def _case(name: str) -> Case:
    router = ROUTERS[name]
    return Case(name, router.required_top_k or 2, "position", _dispatchers(router)[-1])


def _fields(router: type[Router]) -> list[str]:
    """Fields that the router uses, in the order of the schema."""
    return [field for field in _meanings() if field in router.options]


def _config_files(name: str) -> list[str]:
    """Files of configs/routers/ with this router."""
    routed_by = lambda path: runpy.run_path(str(path))["get_config"]().moe.router
    return [path.name for path in sorted(CONFIGS.glob("*.py")) if routed_by(path) == name]


def _meanings() -> dict[str, str]:
    """{field: its comment in the schema}."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(MoEConfig), flags=re.MULTILINE))


if __name__ == "__main__":
    print(document(), end="")
