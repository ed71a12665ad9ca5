"""What folders may be wrong in, and quantised tensors against an oracle of loops."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moe_jax.config.rules import ConfigError
from moe_jax.interop.folder import open_folder
from moe_jax.interop.loaded_model import load_hf
from moe_jax.interop.quantized import dequantized
from moe_jax.interop.tensors import open_tensors

GOLDEN = Path(__file__).parent / "golden"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def single(tmp_path):
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "single"))


@pytest.fixture
def sharded(tmp_path):
    """The same in two files with an index."""
    folder = Path(shutil.copytree(GOLDEN / "llama", tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {FIRST: names[::2], SECOND: names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    write_index(folder, {name: file for file, part in parts.items() for name in part})
    return folder


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read_index(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder, *words):
    with pytest.raises(ConfigError) as error:
        load_hf(folder)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_two_files_are_one_model(single, sharded):
    ids = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(load_hf(single)(ids), load_hf(sharded)(ids))


@pytest.mark.parametrize("keep", [0, 4, 100, 10_000])
def test_a_file_that_was_cut_short(single, keep):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(single, "model.safetensors", "download it again")


def test_a_header_of_nonsense(single):
    path = single / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[20:40] = b"\xff" * 20
    path.write_bytes(bytes(content))
    refused(single, "model.safetensors", "download it again")


def test_a_file_of_the_index_is_missing(sharded):
    (sharded / SECOND).unlink()
    refused(sharded, SECOND, "missing")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_the_index_leads_out_of_the_folder(sharded, name):
    write_index(sharded, read_index(sharded) | {"lm_head.weight": name})
    refused(sharded, "path out of the folder")


def test_a_tensor_is_in_two_files(sharded):
    first, second = load_file(sharded / FIRST), load_file(sharded / SECOND)
    name = next(iter(first))
    save_file(second | {name: first[name]}, sharded / SECOND)
    refused(sharded, name, "in two files")


def test_the_index_is_wrong_about_a_tensor(sharded):
    weight_map = read_index(sharded)
    name = next(name for name, file in weight_map.items() if file == FIRST)
    write_index(sharded, weight_map | {name: SECOND})
    refused(sharded, name, "it is not")
    del weight_map[name]
    write_index(sharded, weight_map)
    refused(sharded, name, "does not list")


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, "index.json", "weight_map")


def test_pickles_are_never_read(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    refused(single, "pytorch_model.bin", "never read")


def test_a_type_of_numbers_that_is_not_read(single):
    tensors = load_file(single / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int64)
    save_file(tensors, single / "model.safetensors")
    refused(single, "lm_head.weight", "I64")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(single, value):
    tensors = load_file(single / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, single / "model.safetensors")
    refused(single, "the tensor model.layers.1.mlp.up_proj.weight has numbers that are not finite: get its file again")


def test_a_config_of_a_model_out_of_all_proportion(single):
    change_config(single, intermediate_size=2**30)
    refused(single, "config.json is of", "parameters, and the tensors have", "download both again")


def test_tensors_at_odds_with_the_config(single):
    tensors = load_file(single / "model.safetensors")
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    save_file(tensors, single / "model.safetensors")
    refused(
        single,
        "1 missing (model.norm.weight)",
        "1 of another shape (lm_head.weight: has (39, 16), needs (40, 16))",
        "1 not known (model.extra)",
    )


def test_the_config_of_another_family(single):
    shutil.copyfile(GOLDEN / "mixtral" / "config.json", single / "config.json")
    refused(single, "block_sparse_moe", "and 52 more", "not known")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gemma"}, ("model_type='gemma'", "mixtral")),
        ({"hidden_act": "gelu"}, ("hidden_act='gelu'", "'silu'")),
        ({"mlp_bias": True}, ("mlp_bias=True",)),
        ({"mystery": 3}, ("mystery=3", "not known")),
        ({"hidden_size": "16"}, ("hidden_size='16'",)),
        ({"hidden_size": -16}, ("hidden_size=-16",)),
        ({"hidden_size": None}, ("hidden_size",)),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, ("longrope", "yarn")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "odd": 1.0}}, ("odd=1.0",)),
        ({"num_attention_heads": 3, "head_dim": 5}, ("num_kv_heads",)),
    ],
)
def test_a_field_that_is_not_supported_is_named(single, fields, words):
    change_config(single, **fields)
    refused(single, *words)


def test_fields_that_are_off_or_without_effect_pass(single):
    change_config(single, mystery=None, other=False, torch_dtype="bfloat16", pretraining_tp=1, transformers_version="9")
    assert open_folder(single).family.model_type == "llama"


@pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000])
def test_a_config_that_cannot_be_read(single, content):
    (single / "config.json").unlink()
    if content is not None:
        (single / "config.json").write_text(content)
    refused(single, "config.json")


@pytest.mark.parametrize("ids", [[1, 2], [[]], [[1.0]], [[40]], [[-1]]])
def test_ids_that_are_none(ids):
    model = load_hf(GOLDEN / "llama")
    with pytest.raises(ValueError, match="ids"):
        model(np.array(ids))


def test_block_fp8(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(130, 200)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.uniform(0.5, 2, size=(2, 2)).astype(np.float32)
    write_raw(tmp_path, {"w.weight": ("F8_E4M3", weight), "w.weight_scale_inv": ("F32", scales)})
    tensors = dequantized(open_tensors(tmp_path))
    assert set(tensors) == {"w.weight"} and tensors["w.weight"].shape == (130, 200)
    read = tensors["w.weight"].read()
    for i, j in ((0, 0), (127, 127), (128, 127), (127, 128), (129, 199)):
        assert read[i, j] == np.float32(weight[i, j]) * scales[i // 128, j // 128]
    write_raw(tmp_path, {"w.weight": ("F8_E4M3", weight)})
    with pytest.raises(ConfigError, match=r"w.weight is FP8 of shape \(130, 200\), .* \(2, 2\) .* none is there"):
        dequantized(open_tensors(tmp_path))


def test_mxfp4(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 3, 2, 16)).astype(np.uint8)
    exponents = rng.integers(120, 135, (2, 3, 2)).astype(np.uint8)
    write_raw(tmp_path, {"w_blocks": ("U8", blocks), "w_scales": ("U8", exponents)})
    tensor = dequantized(open_tensors(tmp_path))["w"]
    whole = tensor.read()
    assert tensor.shape == whole.shape == (2, 64, 3)
    np.testing.assert_array_equal(tensor.read(1), whole[1])
    for expert, row, column in np.ndindex(whole.shape):
        byte = int(blocks[expert, column, row // 32, row % 32 // 2])
        scale = 2.0 ** (int(exponents[expert, column, row // 32]) - 127)
        assert whole[expert, row, column] == four_bits(byte >> 4 if row % 2 else byte & 15) * scale
    write_raw(tmp_path, {"w_blocks": ("U8", blocks)})
    with pytest.raises(ConfigError, match=r"w_blocks .* none are there"):
        dequantized(open_tensors(tmp_path))


def four_bits(bits):
    """E2M1: a sign, two bits of exponent (bias 1) and one of mantissa; exponent 0 is subnormal."""
    sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -size if sign else size


def write_raw(folder, tensors):
    """A safetensors file by hand, with types that NumPy's writer does not know."""
    header, begin = {}, 0
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [begin, begin + values.nbytes]}
        begin += values.nbytes
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for _, values in tensors.values())
    (folder / "model.safetensors").write_bytes(content)


def test_tensors_that_no_logits_depend_on(single):
    """Older folders have tables of frequencies, and some with tied embeddings a head that is not read."""
    ids = np.arange(8).reshape(2, 4)
    expected = np.asarray(load_hf(single)(ids))
    tensors = load_file(single / "model.safetensors")
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for i in range(3)}
    save_file(tensors | tables, single / "model.safetensors")
    np.testing.assert_array_equal(load_hf(single)(ids), expected)
    head = tensors.pop("lm_head.weight")
    change_config(single, tie_word_embeddings=True)
    save_file(tensors, single / "model.safetensors")
    tied = np.asarray(load_hf(single)(ids))
    save_file(tensors | {"lm_head.weight": head}, single / "model.safetensors")
    np.testing.assert_array_equal(load_hf(single)(ids), tied)
    assert (tied != expected).any()
