"""Trains a config, or continues it where its work directory has a checkpoint.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
python experiments/train.py --config=configs/quickstart.py --workdir=runs/e32 --config.moe.num_experts=32
"""

from moe_jax import cli
from moe_jax.train.loop import train

if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(lambda: train(cli.run_config(), cli.workdir()))
