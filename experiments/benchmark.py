"""Benchmarks as ratios within one run: candidates take turns, medians of their paired ratios are reported.

    python experiments/benchmark.py --suite=layer --workdir=runs/benchmark

layer: forward and backward pass of a whole MoE layer over its expert matmuls alone. Writes WORKDIR/benchmark.json.
"""

from absl import flags

from moe_jax import cli
from moe_jax.analysis import layer_benchmark
from moe_jax.train.workdir import make_writable, write_json

SUITES = {"layer": layer_benchmark.run}
SUITE = flags.DEFINE_enum("suite", "layer", sorted(SUITES), "What to measure.")
REPEATS = flags.DEFINE_integer("repeats", 21, "Timed turns of each candidate.", lower_bound=1)


def main() -> None:
    """Runs the suite, prints its table, writes its figures."""
    workdir = cli.workdir()
    make_writable(workdir)
    rows = SUITES[SUITE.value](REPEATS.value)
    write_json(workdir / "benchmark.json", {"suite": SUITE.value, "repeats": REPEATS.value, "rows": rows})


if __name__ == "__main__":
    cli.define_workdir_flag()
    cli.main(main)
