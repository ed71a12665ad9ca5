"""Between Hugging Face folders (config.json, safetensors) and work directories.

    python experiments/convert.py --from_hf=FOLDER --workdir=runs/olmoe      # a run at step 0
    python experiments/convert.py --to_hf=FOLDER --workdir=runs/olmoe        # its newest checkpoint as a new folder

docs/models.md lists the families. On several devices --mesh=fsdp=4,expert=2 says how the weights are laid out.
"""

from absl import flags

from moe_jax import cli
from moe_jax.config.rules import ConfigError, directory
from moe_jax.interop.work_directory import export_run, import_folder

FROM = flags.DEFINE_string("from_hf", None, "Folder that a work directory is made of.")
TO = flags.DEFINE_string("to_hf", None, "Folder to be written.")
DTYPE = flags.DEFINE_string(
    "dtype", "", "With --to_hf: float32, bfloat16 or float16; default: as they came, or float32."
)
MESH = flags.DEFINE_string("mesh", "", "Sizes of mesh axes: fsdp=4,expert=2. Default: one device.")


def main() -> None:
    """Imports or exports."""
    if (FROM.value is None) == (TO.value is None):
        raise ConfigError("give one of --from_hf=FOLDER and --to_hf=FOLDER")
    workdir, sizes = cli.workdir(), cli.sizes("--mesh", MESH.value)
    if FROM.value is not None:
        if DTYPE.value:
            raise ConfigError("--dtype is of --to_hf: runs keep their weights in float32")
        import_folder(directory("--from_hf", FROM.value), workdir, sizes)
    else:
        export_run(workdir, directory("--to_hf", TO.value), sizes, DTYPE.value)


if __name__ == "__main__":
    cli.define_workdir_flag()
    cli.main(main)
