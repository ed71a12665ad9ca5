"""Runs a script as several processes on this machine, which train one run together.

python experiments/launch_local.py --processes=2 --devices_per_process=4 -- \\
  experiments/train.py --config=configs/quickstart.py --workdir=runs/two --config.mesh.expert=8
"""

import sys

from absl import flags

from moe_jax import cli
from moe_jax.parallel.launch import launch

PROCESSES = flags.DEFINE_integer("processes", 0, "How many.", lower_bound=0)
DEVICES = flags.DEFINE_integer("devices_per_process", 0, "CPU devices of each; 0: those that it has.", lower_bound=0)

if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else 1  # what stands without a -- is no flag of this script
    script, sys.argv = sys.argv[end + 1 :] if "--" in sys.argv else [], sys.argv[:end]
    cli.main(lambda: launch(script, PROCESSES.value, DEVICES.value))
