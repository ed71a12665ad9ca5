"""Import, evaluation, fine-tuning and export through work directories."""

import json
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_jax.benchmarks.importing import write_random
from moe_jax.config.rules import ConfigError
from moe_jax.interop import work_directory
from moe_jax.interop.families import FAMILIES
from moe_jax.interop.loaded_model import load_hf
from moe_jax.interop.work_directory import export_run, import_folder
from moe_jax.journal import workdir as records
from moe_jax.resolve import resolve
from moe_jax.train.begin import begin
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint
from moe_jax.train.loop import train

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
IDS = np.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Mixtral in bfloat16 with a tokenizer and what else comes along."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    write_random(folder, FAMILIES["mixtral"], d_model=64, d_ff=48, num_layers=2, experts=4, top_k=2, vocab_size=320)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    tokenizer.train_from_iterator(["the router sends each token to one expert"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "weights.bin").write_bytes(b"not carried")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [{"prompt": f"Say {i}: ", "response": f"the router says {i}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def finetune(folder, pairs, tmp_path):
    """finetune(fields) is a run of configs/finetune.py on a few sequences."""

    def run(fields=None, devices=1):
        config = runpy.run_path(str(ROOT / "configs" / "finetune.py"))["get_config"](str(folder))
        small = {
            "data.source": f"jsonl:{pairs}", "data.prompt_field": "prompt", "data.text_field": "response",
            "data.sequence_length": 32, "data.batch_size": 8, "moe.group_size": 32, "data.cache_dir": str(tmp_path),
            "data.holdout_fraction": 0.2, "train.steps": 6, "train.warmup_steps": 0, "train.learning_rate": 3e-2,
        }  # fmt: skip
        config.update_from_flattened_dict(small | (fields or {}))
        return resolve(config, devices)

    return run


def test_the_whole_story(folder, finetune, tmp_path, capsys):
    """A folder is imported, evaluated, fine-tuned by adapters, exported, and computes what was trained."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    import_folder(folder, workdir, {})
    run = finetune({"lora.rank": 4})
    assert run.data.tokenizer == f"hf:{folder / 'tokenizer.json'}"
    evaluate_checkpoint(finetune(), workdir)
    before = json.loads((workdir / "eval.json").read_text())["loss"]
    assert train(run, workdir) == 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["eval_loss"] < before - 0.1
    assert summary["origin"] == f"hf:{folder}"
    export_run(workdir, out, {"expert": 2, "tensor": 2})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not (out / "weights.bin").exists()
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    old, new = (load_file(path / "model.safetensors") for path in (folder, out))
    assert {name: (t.shape, t.dtype) for name, t in old.items()} == {
        name: (t.shape, t.dtype) for name, t in new.items()
    }
    changed = {name.split(".")[3] for name in old if (old[name] != new[name]).any()}
    assert changed == {"self_attn", "block_sparse_moe"}
    assert (np.asarray(load_hf(out)(IDS)) != np.asarray(load_hf(folder)(IDS))).all()
    export_run(workdir, tmp_path / "wide", {}, "float32")
    import_folder(tmp_path / "wide", tmp_path / "again", {})
    evaluate_checkpoint(finetune(), tmp_path / "again")
    again = json.loads((tmp_path / "again" / "eval.json").read_text())["loss"]
    evaluate_checkpoint(run, workdir)
    np.testing.assert_allclose(again, json.loads((workdir / "eval.json").read_text())["loss"], rtol=1e-5)
    (workdir / "eval.json").unlink()
    (workdir / "eval.json").mkdir()  # it cannot be written: the table is shown all the same
    capsys.readouterr()
    evaluate_checkpoint(run, workdir)
    assert "bits per byte" in capsys.readouterr().out


def test_fine_tuning_leaves_experts_and_routers_alone_by_default(folder, finetune, tmp_path):
    import_folder(folder, tmp_path / "run", {})
    assert train(finetune({"train.steps": 2}), tmp_path / "run") == 0
    export_run(tmp_path / "run", tmp_path / "out", {})
    old, new = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    same = {name for name in old if (old[name] == new[name]).all()}
    assert {name for name in old if "block_sparse_moe" in name} <= same
    assert not any("self_attn.q_proj" in name or "lm_head" in name for name in same)


def killed(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("module", "step"), [(work_directory, "begin"), (records, "claim_for_weights")])
def test_what_a_killed_import_left_is_part_of_no_other(folder, finetune, tmp_path, monkeypatch, module, step):
    """Behind the copies of files, or behind the weights: another import replaces both, and no training takes them."""
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, step, killed)
        import_folder(folder, workdir, {})
    assert (workdir / "hf" / "tokenizer.json").exists() and not (workdir / "config.json").exists()
    if (workdir / "checkpoints" / "0").exists():
        with pytest.raises(ConfigError, match="an import that did not end"):
            train(finetune(), workdir)
    import_folder(GOLDEN / "llama", workdir, {})
    assert not (workdir / "hf" / "tokenizer.json").exists()
    export_run(workdir, tmp_path / "out", {})
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_a_temperature_that_the_family_cannot_say(folder, finetune, tmp_path):
    import_folder(folder, tmp_path / "run", {})
    with pytest.raises(ConfigError, match=r"weights of another model.*moe\.temperature"):
        train(finetune({"moe.temperature": 0.2}), tmp_path / "run")


def test_drafts_of_others_stay(folder, tmp_path):
    import_folder(folder, tmp_path / "run", {})
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("keep")
    export_run(tmp_path / "run", tmp_path / "out", {})
    assert (tmp_path / "out.partial" / "mine").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial", "run"]


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_there_and_back_is_bit_for_bit(family, tmp_path):
    import_folder(GOLDEN / family, tmp_path / "run", {"fsdp": 2, "expert": 2, "tensor": 2})
    export_run(tmp_path / "run", tmp_path / "out", {"data": 2})
    before, after = (load_file(path / "model.safetensors") for path in (GOLDEN / family, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    described = [json.loads((path / "config.json").read_text()) for path in (GOLDEN / family, tmp_path / "out")]
    assert described[0] == described[1]


def test_nothing_is_written_over(folder, tmp_path):
    import_folder(folder, tmp_path / "run", {})
    with pytest.raises(ConfigError, match="holds a run already"):
        import_folder(folder, tmp_path / "run", {})
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export_run(tmp_path / "run", tmp_path / "out", {})
    with pytest.raises(ConfigError, match="holds no run"):
        export_run(tmp_path / "nothing", tmp_path / "new", {})
    with pytest.raises(ConfigError, match="--mesh names 'experts'"):
        import_folder(folder, tmp_path / "other", {"experts": 2})
    with pytest.raises(ConfigError, match="--dtype='int8'"):
        export_run(tmp_path / "run", tmp_path / "new", {}, "int8")
    assert not (tmp_path / "new").exists() and not (tmp_path / "other").exists()


def test_a_tokenizer_of_another_vocabulary(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "hf")
    tokenizer = tokenizers.Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.add_tokens([f"<more {i}>" for i in range(60)])
    tokenizer.save(str(copied / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json has ids up to \d+ and the model a vocabulary of 320"):
        import_folder(copied, tmp_path / "run", {})
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        import_folder(copied, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_run_that_no_family_says(make_run, set_up_once, tmp_path):
    setup, state = set_up_once({})  # its experts have two matrices
    begin(setup.run, tmp_path / "run", state.variables, "nowhere")
    with pytest.raises(ConfigError, match="no family of Hugging Face's"):
        export_run(tmp_path / "run", tmp_path / "out", {})
    assert jax.device_count() == 8 and not (tmp_path / "out").exists()


def test_a_bias_that_the_family_does_not_have(folder, finetune, tmp_path):
    """Training may add a balance bias to a model, and then its family cannot say it any more."""
    import_folder(folder, tmp_path / "run", {})
    assert train(finetune({"train.steps": 1, "moe.bias_rate": 0.01, "train.trainable": ()}), tmp_path / "run") == 0
    with pytest.raises(ConfigError, match=r"MixtralForCausalLM cannot say .*moe\.balance_bias"):
        export_run(tmp_path / "run", tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"model.d_model": "x"}, {"model.d_model": 32.5}, {"attention.windows": 5}], ids=str)
def test_a_config_with_a_value_of_another_type(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "read_fields", lambda workdir: fields)
    with pytest.raises(ConfigError, match=r"config.json is damaged \(.*\): restore it") as raised:
        work_directory.config_of_run(tmp_path)
    assert "\n" not in str(raised.value)
