"""Writes docs/routers.md from the registries: papers, fields, losses, and causality as it is measured.

python -m moe_jax.documentation.routers > docs/routers.md.new && mv docs/routers.md.new docs/routers.md
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence

from moe_jax.config.schema import MoEConfig
from moe_jax.documentation.causality import EXPERTS, TIGHT, TOKENS, Case, measure
from moe_jax.moe.losses import LOSSES
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router import Router
from moe_jax.moe.routers import ROUTERS
from moe_jax.report.markdown import rows
from moe_jax.resolve import ConfigError, resolve
from moe_jax.resolve.router_configs import router_configs

BALANCING = (*(name for name in LOSSES if name != "penalty_loss"), "bias_rate")  # a penalty needs its name too
HEADER = """# Routers

Written by `make docs` from the registry (`ROUTERS` in `moe_jax/moe/routers/__init__.py`); do not edit.

A router decides which experts a token goes to and with what weight: `--config.moe.router=NAME`. Each has a file in
`configs/routers/`. Every mesh gives the same result with every router: they work on whole groups, and a device holds
whole groups.

Each file trains 4,000 steps on a pinned source archive (11 MB), 20 minutes on a CPU core; with
`--config.train.steps=200 --config.eval.every=50` it takes one. These curves of held-out loss and expert balance
were made like that (with one seed, so their order is no result):

![Curves of the routers in TensorBoard](images/routers.png)
"""
LEAK = """*Leak* is the fraction of tokens in the first half of a group whose output changes when the second half is
replaced, first in training, then in evaluation. It is measured with random weights, groups of {tokens} tokens,
{experts} experts and a capacity factor of {tight}, with the first dispatcher named above;
`python -m moe_jax.documentation.causality` measures all dispatchers. What leaks is allowed, with a warning: such a
decoder is trained with a look at tokens that it will not have when it generates.
"""
COMMON = """These work with every router, unless its section says otherwise; `moe.fine_grained`, which multiplies K,
where K is not fixed.
"""


def document() -> str:
    """The whole file."""
    parts = [HEADER, *_overview(), "", "## Causality", "", LEAK.format(tokens=TOKENS, experts=EXPERTS, tight=TIGHT)]
    parts += [*_leaks(), "", *_drop_orders(), "", "## Around every router", "", COMMON, *_common_fields()]
    for name in ROUTERS:
        parts += ["", *_section(name)]
    return "\n".join(parts) + "\n"


def _overview() -> Iterator[str]:
    yield from rows(
        ("router", "paper", "K", "dispatchers", "causal"),
        [
            (
                f"[`{name}`](#{name})",
                router.paper,
                str(router.required_top_k or ("any" if router.least_top_k == 1 else f"{router.least_top_k} or more")),
                ", ".join(f"`{dispatcher}`" for dispatcher in router.dispatchers),
                "yes" if router.causal else "in evaluation" if router.causal_in_evaluation else "no",
            )
            for name, router in ROUTERS.items()
        ],
    )


def _leaks() -> Iterator[str]:
    """The leak of every router in every drop order that it can have, and of plain top-k with a single choice."""

    def cells(case: Case) -> Iterator[str]:
        for order in DROP_ORDERS:
            if order != ROUTERS[case.router].fixed_fields.get("drop_order", order):
                yield "-"
                continue
            leak = measure(case._replace(drop_order=order).config())
            yield f"{leak.training:.0%}, {leak.evaluation:.0%}"

    plain = Case("top_k", 1, "position", "capacity")
    body = [(f"`{case.router}`", str(case.top_k), *cells(case)) for case in [plain, *map(_case, ROUTERS)]]
    yield from rows(("router", "K", *(f"`{order}`" for order in DROP_ORDERS)), body)


def _drop_orders() -> Iterator[str]:
    yield "The drop order, `--config.moe.drop_order=NAME`, says who gets a slot first where an expert has too few."
    for order, entry in DROP_ORDERS.items():
        yield ""
        yield f"`{order}`: {inspect.getdoc(entry.queue)}"


def _common_fields() -> Iterator[str]:
    of_some = frozenset().union(*(router.options for router in ROUTERS.values()))
    return _table_of([field for field in _meanings() if field not in of_some])


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
        yield ""
        yield from _table_of(fields)


def _table_of(fields: Sequence[str]) -> Iterator[str]:
    meanings, defaults = _meanings(), MoEConfig()
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


def _case(name: str) -> Case:
    router = ROUTERS[name]
    return Case(name, router.required_top_k or 2, "position", router.dispatchers[0])


def _fields(router: type[Router]) -> list[str]:
    """Fields that the router uses, in the order of the schema."""
    return [field for field in _meanings() if field in router.options]


def _config_files(name: str) -> list[str]:
    """Files of configs/routers/ with this router."""
    named = lambda moe: (moe.router, *moe.router_by_layer)
    return [f"{file}.py" for file, moe in router_configs().items() if name in named(moe)]


def _meanings() -> dict[str, str]:
    """{field: its comment in the schema}: the lines right above it, then what stands behind it."""
    meanings, above = {}, []
    for line in inspect.getsource(MoEConfig).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
            continue
        if field := re.fullmatch(r"    (\w+): .*?(?:  # (.*))?", line):
            meanings[field[1]] = " ".join([*above, *([field[2]] if field[2] else [])])
        above = []
    return meanings


if __name__ == "__main__":
    print(document(), end="")
