"""Goes on with prompts, by the newest checkpoint of a run or by a Hugging Face folder.

    python experiments/generate.py --workdir=runs/quickstart --prompt="def main(" --temperature=0.8
    python experiments/generate.py --from_hf=FOLDER --prompts=configs/prompts.jsonl --places=4 --output=answers.jsonl
    python experiments/generate.py --workdir=runs/quickstart --cost --prompts=configs/prompts.jsonl

docs/inference.md says what can be asked for, and what --cost measures.
"""

from pathlib import Path

from absl import flags

from moe_jax import cli
from moe_jax.config.rules import ConfigError, directory
from moe_jax.inference.cost import report
from moe_jax.inference.engine import Engine, Request
from moe_jax.inference.generate import generate
from moe_jax.inference.prompts import read
from moe_jax.inference.sampling import Sampling
from moe_jax.inference.source import Source, check_room, from_hf, from_workdir
from moe_jax.inference.text import check_writable
from moe_jax.journal.workdir import make_writable

FROM = flags.DEFINE_string("from_hf", None, "Hugging Face folder to decode with, in place of --workdir.")
PROMPT = flags.DEFINE_string("prompt", None, "One prompt.")
PROMPTS = flags.DEFINE_string("prompts", None, 'File of JSON lines, {"prompt": "..."} each.')
OUTPUT = flags.DEFINE_string("output", "", "File for the answers; default: WORKDIR/generations.jsonl.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Tokens of an answer at most.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Divides the logits; 0: the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many of the likeliest tokens; 0: from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that have this probability together.")
MIN_P = flags.DEFINE_float("min_p", 0.0, "Draw from tokens at least so likely, in parts of the likeliest.")
SEED = flags.DEFINE_integer("seed", 0, "Of the first prompt's draws; the next ones have the next.")
STOP = flags.DEFINE_multi_string("stop", [], "A text that ends an answer; may be given several times.")
IGNORE_STOP = flags.DEFINE_boolean("ignore_stop", False, "Go on behind the model's own stop tokens.")
LOG_PROBABILITIES = flags.DEFINE_boolean("log_probabilities", False, "Write them with the answers.")
PLACES = flags.DEFINE_integer("places", 1, "Sequences that are decoded at a time.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 1024, "Tokens of a prompt and its answer together, at most.", lower_bound=2)
PIECE = flags.DEFINE_integer("piece", 256, "Tokens of a prompt that are computed at once, at most.", lower_bound=1)
DTYPE = flags.DEFINE_string("dtype", "", "float32, bfloat16 or float64; default: the run's, or float32.")
WEIGHTS = flags.DEFINE_string("weights", "", "int8: matrices in int8, with a scale for each output channel.")
MESH = flags.DEFINE_string("mesh", "", "Sizes of mesh axes: expert=4,tensor=2. Default: one device.")
COST = flags.DEFINE_boolean("cost", False, "Measure what a token costs, and write cost.json beside the answers.")
COMPARE = flags.DEFINE_boolean("compare", False, "With --cost: dense models of equal size in the same run.")
PRICE = flags.DEFINE_float("price_per_hour", 0.0, "Of all devices, for the cost of a million tokens.", lower_bound=0.0)


def source() -> Source:
    """The model that the flags name."""
    if (FROM.value is None) == (flags.FLAGS.workdir is None):
        raise ConfigError("give one of --workdir=DIR and --from_hf=FOLDER")
    sizes = cli.sizes("--mesh", MESH.value)
    if FROM.value is not None:
        return from_hf(directory("--from_hf", FROM.value), sizes, DTYPE.value, WEIGHTS.value)
    return from_workdir(cli.workdir(), sizes, DTYPE.value, WEIGHTS.value)


def main() -> int:
    """Answers, or measures."""
    if (PROMPT.value is None) == (PROMPTS.value is None):
        raise ConfigError("give one of --prompt=TEXT and --prompts=FILE")
    if not COST.value:
        cli.refuse_flags("compare price_per_hour", "is for --cost")
    if "" in STOP.value:
        raise ConfigError("--stop= is empty: give a text, or leave it out")
    output = Path(OUTPUT.value).expanduser() if OUTPUT.value else None
    if output is not None:
        if output.is_dir() or (PROMPTS.value and output.resolve() == Path(PROMPTS.value).expanduser().resolve()):
            raise ConfigError(f"--output={output} is a folder, or the file of prompts: give a file of its own")
        make_writable(output.parent, "--output")
    sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value, SEED.value)
    sampling.check()
    check_writable("--prompt", PROMPT.value or "")
    run, mesh, weights, text = source()
    check_room(run, PLACES.value, LENGTH.value, PIECE.value)
    defaults = Request((), MAX_TOKENS.value, sampling, tuple(STOP.value), IGNORE_STOP.value)
    if PROMPT.value is not None:
        requests = [Request(tuple(text.encode(PROMPT.value)), *list(vars(defaults).values())[1:])]
    else:
        requests = list(read(Path(PROMPTS.value).expanduser(), text, defaults))
    engine = Engine(run, mesh, weights, text, PLACES.value, LENGTH.value, PIECE.value)
    if output is None and flags.FLAGS.workdir is not None:
        output = cli.workdir() / "generations.jsonl"
    if COST.value:
        return report(engine, requests, output.parent if output else None, PRICE.value, COMPARE.value)
    return generate(engine, requests, output, LOG_PROBABILITIES.value)


if __name__ == "__main__":
    cli.define_workdir_flag(required=False)
    cli.main(main)
