"""Evaluates the newest checkpoint of a run on all of its held-out text, by domain; writes WORKDIR/eval.json.

python experiments/evaluate.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from moe_jax import cli
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint

if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(lambda: evaluate_checkpoint(cli.run_config(), cli.workdir()))
