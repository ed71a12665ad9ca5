"""Benchmarks as ratios within one run: candidates take turns in shuffled order, paired ratios are reported.

    python experiments/benchmark.py --suite=layer --workdir=runs/benchmark

layer: forward and backward pass of a whole MoE layer over its expert matmuls alone.
dropless: the whole layer that drops nothing over the one with capacity factor 1.
routers: the whole layer with every file of configs/routers/, its losses included, over that with plain top-k routing.
parallel: eight fake devices against one on the same work, and more experts at the same work; start it with
XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment.
peers: the layer over Hugging Face's Mixtral block by its fastest backend; make venv-peers has torch.
processes: two processes of four fake devices over one of eight, seconds a step of the quickstart model.
data: tokens a second of the loader, and the speed of tokenizing over that of the library `tokenizers`.
decode: one sequence of a sparse model over a dense one and over the memory's speed, and batching without gaps.
predict: the audit's prediction of a training step over the step that this machine measures.
import: bytes a second from a Hugging Face folder to weights, over reading its files with the library `safetensors`.

Writes WORKDIR/benchmark_SUITE.json.
"""

from absl import flags

from moe_jax import cli
from moe_jax.benchmarks import data, decode, dropless, importing, layer, parallel, peers, predict, processes, routers
from moe_jax.journal.workdir import make_writable, write_json

SUITES = {
    "data": data.run,
    "decode": decode.run,
    "dropless": dropless.run,
    "import": importing.run,
    "layer": layer.run,
    "parallel": parallel.run,
    "peers": peers.run,
    "predict": predict.run,
    "processes": processes.run,
    "routers": routers.run,
}
SUITE = flags.DEFINE_enum("suite", "layer", sorted(SUITES), "What to measure.")
REPEATS = flags.DEFINE_integer("repeats", 21, "Timed turns of each candidate.", lower_bound=1)


def main() -> None:
    """Runs the suite, prints its table, writes its figures."""
    workdir = cli.workdir()
    make_writable(workdir)
    rows = SUITES[SUITE.value](REPEATS.value)
    write_json(
        workdir / f"benchmark_{SUITE.value}.json", {"suite": SUITE.value, "repeats": REPEATS.value, "rows": rows}
    )


if __name__ == "__main__":
    cli.define_workdir_flag()
    cli.main(main)
