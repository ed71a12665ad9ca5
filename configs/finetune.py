"""Fine-tunes a Hugging Face checkpoint; --config=configs/finetune.py:FOLDER names its folder.

    python experiments/convert.py --from_hf=FOLDER --workdir=runs/tuned
    python experiments/train.py --config=configs/finetune.py:FOLDER --workdir=runs/tuned \
        --config.data.source=jsonl:pairs.jsonl --config.data.prompt_field=prompt --config.data.text_field=response

The defaults follow ST-MoE (Zoph et al. 2022, arXiv 2202.08906, section 4): of an MoE model all weights but the experts
and routers are trained, which did as well there as training everything, with fewer to overfit; sparse models wanted
smaller batches and a higher learning rate than dense ones; and dropped tokens did no harm, so that the capacity factor
need not be raised. `--config.train.trainable=()` trains everything, `--config.lora.rank=16` trains adapters instead.
"""

from pathlib import Path

from moe_jax.interop.folder import config_of
from moe_jax.interop.work_directory import TOKENIZER

CAPACITY_FACTOR = 2.0  # in training; evaluation has room for every choice, as the imported model had


def get_config(folder: str = ""):
    if not folder:
        raise ValueError("name the folder of the checkpoint: --config=configs/finetune.py:FOLDER")
    config = config_of(folder)
    if (Path(folder).expanduser() / TOKENIZER).is_file():
        config.data.tokenizer = f"hf:{Path(folder).expanduser() / TOKENIZER}"
    config.data.update(sequence_length=512, batch_size=32, mask_documents=True)
    config.moe.update(group_size=512, balance_loss=0.01 if config.moe.num_experts else 0.0)
    config.moe.capacity_factor = min(config.moe.capacity_factor, CAPACITY_FACTOR)
    config.train.update(steps=500, learning_rate=1e-4, schedule="cosine", warmup_steps=50, b2=0.999, weight_decay=0.0)
    config.train.trainable = ("!experts", "!router") if config.moe.num_experts else ()
    config.eval.update(every=100, batches=20)
    config.checkpoint.every = 100
    return config
