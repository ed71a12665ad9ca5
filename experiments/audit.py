"""Compiles a step of a config for hardware that is not there and reads time, memory and communication off it.

    make venv-aot && source .venv-aot/bin/activate
    python experiments/audit.py --config=configs/mixtral_8x7b.py --config.data.batch_size=64 --target=v5p:4x4x4 \
        --workdir=runs/audit
    python experiments/audit.py --config=configs/mixtral_8x7b.py --target=h100:8 --mode=decode --places=64 \
        --config.mesh.fsdp=1 --workdir=runs/decode

Writes audit.json and audit.md to WORKDIR. Targets: moe_jax/audit/targets.py. docs/audit.md says what the figures mean.
"""

import re
import sys
from pathlib import Path
from typing import Any

from absl import flags

from moe_jax import cli
from moe_jax.audit import side_by_side
from moe_jax.audit.answers import MODES, Work, overridden
from moe_jax.audit.cache import cached
from moe_jax.audit.estimate import MATMUL, MEMORY
from moe_jax.audit.links import Wires
from moe_jax.audit.table import audit, table
from moe_jax.audit.targets import target_of
from moe_jax.journal.workdir import make_writable, write_json
from moe_jax.parallel.mesh import make_mesh

TARGET = flags.DEFINE_list(
    "target",
    None,
    'Chips to compile for: "v5p:4x4x4", "h100:8", "h100:2x8"; several are set side by side.',
    required=True,
)
LIMIT = flags.DEFINE_float("limit_s", 900.0, "With several targets: seconds that one may take.", lower_bound=1)
MODE = flags.DEFINE_enum("mode", MODES[0], MODES, "Which step: of training, of a prompt, or of decoding.")
PLACES = flags.DEFINE_integer("places", 64, "Sequences that are decoded at a time, on all devices.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 4096, "Tokens of each sequence in the caches.", lower_bound=2)
PIECE = flags.DEFINE_integer("piece", 1024, "With --mode=prefill: tokens of a prompt that are computed at once.", 2)
WEIGHTS = flags.DEFINE_string("weights", "", "With --mode=prefill or decode: int8.")
CONSTANTS = flags.DEFINE_string(
    "constants", "", "Of the chip, in place of those in moe_jax/parallel/chips.py: price=2.5,network=25e9."
)


def main() -> None:
    """Audits one target, or several side by side."""
    workdir = cli.workdir()
    make_writable(workdir)
    if len(TARGET.value) == 1:
        result = _audit(TARGET.value[0], workdir)
        text = table(result)
    else:
        arguments = [one for one in sys.argv[1:] if not re.match(r"--?(target|workdir)=", one)]
        found = side_by_side.audit_each(Path(__file__), arguments, TARGET.value, workdir, LIMIT.value)
        result, text = {"targets": found}, side_by_side.table(found)
    write_json(workdir / "audit.json", result)
    (workdir / "audit.md").write_text(text + "\n")
    print(text)


def _audit(name: str, workdir: Path) -> dict[str, Any]:
    """Compiles and reads."""
    constants = cli.numbers("--constants", CONSTANTS.value)
    reach = {"matmul": constants.pop("matmul", MATMUL), "memory": constants.pop("memory_reach", MEMORY)}
    target = target_of(name)
    chip = overridden(target.chip, constants)
    run = cli.run_config(len(target.devices))
    mesh = make_mesh(run.mesh, target.devices)
    work = Work(MODE.value, PLACES.value, LENGTH.value, PIECE.value, WEIGHTS.value)
    wires = Wires(chip, list(mesh.devices.flat), target.domain)
    built = cached(workdir, name, run, mesh, work)
    return {"target": name, **audit(run, mesh, built, wires, work, **reach)}


if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(main)
