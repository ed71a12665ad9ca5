"""Random configurations are trained for two steps, or refused in one line before anything is compiled."""

import collections
import dataclasses
import math
import random
import warnings

import jax
import pytest

from moe_jax import cli
from moe_jax.config import default_config
from moe_jax.config.rules import ConfigError, DivergedError
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.models.attention import ATTENTIONS
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.moe.bias_updates import BIAS_UPDATES
from moe_jax.moe.checks import CHOICES
from moe_jax.optim.optimizer import OPTIMIZERS, SCHEDULES
from moe_jax.resolve import resolve
from moe_jax.train.loop import train

pytestmark = pytest.mark.soak

COUNT, SEED, WORKERS = 500, 0, 10
INTEGERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
ABSURD_INTEGERS = (-1, -7, 10**6, 2**31, 2**40, 2**63)
FLOATS = (0.0, 0.001, 0.1, 0.5, 1.0, 1.25, 2.0, 7.5)
ABSURD_FLOATS = (-1.0, 1e-30, 1e30, float("nan"), float("inf"))
STRINGS = {
    **{f"moe.{name}": tuple(known) for name, known in CHOICES.items()},
    "moe.bias_update": tuple(BIAS_UPDATES),
    "model.activation": ("relu", "gelu", "swiglu", "geglu"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.remat": ("none", "full", "save_exchange"),
    "attention.kind": tuple(ATTENTIONS),
    "attention.kernel": tuple(KERNELS),
    "train.optimizer": tuple(OPTIMIZERS),
    "train.schedule": tuple(SCHEDULES),
    "data.tokenizer": ("bytes", "bpe"),
    "task": ("text",),
}
AXES = ("mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor")
MESHES = ((1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 4, 1), (2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 2, 1))
KEPT = ("data.source", "data.cache_dir", "train.profile", "data.text_field")


def draw_value(draw, name, default, declared):
    """A value for a field: mostly of its type and near its default, sometimes absurd."""
    absurd = draw.random() < 0.05
    if absurd and draw.random() < 0.3:
        return draw.choice((None, "many", (), 1.5, True, [1, "two"]))
    if isinstance(default, bool):
        return draw.random() < 0.5
    if isinstance(default, int):
        near = (max(default // 2, 1), default, 2 * default, 4 * default)
        return draw.choice(ABSURD_INTEGERS if absurd else near if draw.random() < 0.7 else INTEGERS)
    if isinstance(default, float):
        near = (default / 2, default, 2 * default)
        return draw.choice(ABSURD_FLOATS if absurd else near if draw.random() < 0.7 else FLOATS)
    if isinstance(default, tuple):
        element = declared.__args__[0]
        one = STRINGS["moe.router"] if element is str else INTEGERS if element is int else FLOATS
        return tuple(draw.choice(one) for _ in range(draw.choice((0, 0, 1, 2, 3))))
    return "nonsense" if absurd else draw.choice(STRINGS.get(name, ("", "nonsense")))


def draw_fields(seed, base):
    """Between one and four changed fields of the run `base`, half of the time the sizes of the mesh too."""
    draw = random.Random(seed)
    declared = {
        f"{section.name}.{field.name}": field.type
        for section in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(section.default)
        for field in dataclasses.fields(section.default)
    }
    values = {name: value for name, value in flatten(RunConfig()).items() if name not in KEPT} | base
    names = sorted(name for name in values if name in declared and name not in KEPT and not name.startswith("mesh."))
    moe = [name for name in names if name.startswith("moe.")]
    chosen = dict.fromkeys(draw.choice(draw.choice((moe, names))) for _ in range(draw.randint(1, 4)))
    fields = {name: draw_value(draw, name, values[name], declared[name]) for name in chosen}
    if draw.random() < 0.5:
        axes = draw.choice(
            ((1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 4, 1), (2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 2, 1))
        )
        fields |= dict(zip(("mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor"), axes, strict=True))
    if draw.random() < 0.03:
        fields["mesh.data"] = draw.choice((-1, 0, 3, 64, "all"))
    return fields


def outcome(fields, tiny, workdir):
    """What becomes of a configuration: trained, diverged, or refused with a line. Anything else is raised."""
    config = default_config().copy_and_resolve_references()
    config = type(config)(config.to_dict(), type_safe=False)
    base = tiny | {"train.steps": 2, "eval.batches": 1, "log.every": 1, "checkpoint.every": 2}
    for name, value in (base | fields).items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    steps = config.train.steps
    if isinstance(steps, int) and not isinstance(steps, bool) and 2 < steps < 2**31:
        config.train.steps = 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes = [size for size in config.mesh.values() if isinstance(size, int)]
            devices = min(max(math.prod(sizes), 1), jax.device_count())
            assert train(resolve(config, devices), workdir) == 0
    except DivergedError as error:
        return "diverged", str(error)
    except ConfigError as error:
        return "refused", str(error)
    except ValueError as error:
        assert cli._raised_here(error), "an error of a library, not a line for the user"
        return "refused", str(error)
    return "trained", ""


@pytest.mark.parametrize("worker", range(WORKERS))
def test_trained_or_refused(worker, tiny, tmp_path):
    counts, failures = collections.Counter(), []
    for number in range(worker, COUNT, WORKERS):
        fields = draw_fields(SEED + number, tiny)
        try:
            what, line = outcome(fields, tiny, tmp_path / str(number))
        except Exception as error:
            failures.append(f"{fields}: {type(error).__name__}: {str(error)[:300]}")
            continue
        counts[what] += 1
        if "\n" in line or len(line) > 1000:
            failures.append(f"{fields}: not one line: {line[:300]}")
    print(dict(counts))
    assert not failures, f"{len(failures)} of {COUNT // WORKERS}:\n" + "\n".join(failures)
