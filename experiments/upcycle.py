"""Makes an MoE run at step 0 from a dense run, whose feed-forward networks its experts begin as.

    python experiments/upcycle.py --from=runs/dense --config=configs/upcycled_small.py --workdir=runs/moe
    python experiments/train.py --config=configs/upcycled_small.py --workdir=runs/moe

Experts that are G times as narrow as the dense layers (moe.d_ff) begin as their parts, each of which a token's choices
hold whole. That the MoE model computes what the dense one does is checked before anything is written.
"""

from absl import flags

from moe_jax import cli
from moe_jax.config.rules import directory, not_negative
from moe_jax.interop.upcycling import Options, upcycle

FROM = flags.DEFINE_string("from", None, "Work directory of the dense run.", required=True)
NOISE = flags.DEFINE_float("noise", 0.0, "Added to experts' weights, in standard deviations of each matrix.")
ROUTER_STD = flags.DEFINE_float("router_std", 0.02, "Standard deviation of router weights; 0: 1 / sqrt(d_model).")
SEED = flags.DEFINE_integer("seed", 0, "Of routers and noise.", lower_bound=0)


def main() -> None:
    """Upcycles."""
    for name, value in (("--noise", NOISE.value), ("--router_std", ROUTER_STD.value)):
        not_negative(name, value)
    options = Options(NOISE.value, ROUTER_STD.value, SEED.value)
    upcycle(directory("--from", FROM.value), cli.base_config(), cli.workdir(), options)


if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(main)
