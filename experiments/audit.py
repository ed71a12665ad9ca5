"""Compiles a config's training step for hardware that is not there and reads its communication and memory off it.

    make venv-aot && source .venv-aot/bin/activate
    python experiments/audit.py --config=configs/mixtral_8x7b.py --config.data.batch_size=64 --target=v5p:4x4x4 \
        --workdir=runs/audit

Writes audit.json and audit.md to WORKDIR. Targets: moe_jax/audit/targets.py.
"""

from absl import flags

from moe_jax import cli
from moe_jax.audit.compile import compile_train_step
from moe_jax.audit.table import audit, table
from moe_jax.audit.targets import devices
from moe_jax.journal.workdir import make_writable, write_json
from moe_jax.parallel.mesh import make_mesh

TARGET = flags.DEFINE_string("target", None, 'Chips to compile for: "v5p:4x4x4", "h100:8", "h100:2x8".', required=True)


def main() -> None:
    """Compiles, reads, writes, prints."""
    workdir = cli.workdir()
    there = devices(TARGET.value)
    run = cli.run_config(len(there))
    make_writable(workdir)
    mesh = make_mesh(run.mesh, there)
    result = {"target": TARGET.value, **audit(run, mesh, *compile_train_step(run, mesh))}
    write_json(workdir / "audit.json", result)
    (workdir / "audit.md").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(main)
