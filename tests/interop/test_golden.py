"""Logits of small checkpoints that Hugging Face's own code has computed, in float64; golden/make.py wrote both."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import moe_jax
from moe_jax.config.schema import MeshConfig
from moe_jax.interop.export import differences, family_of, write_folder
from moe_jax.interop.families import FAMILIES
from moe_jax.interop.folder import open_folder
from moe_jax.interop.loaded_model import load_hf
from moe_jax.parallel.mesh import make_mesh

GOLDEN = Path(__file__).parent / "golden"
MESH = MeshConfig(fsdp=2, expert=2, tensor=2)


def golden(family):
    with np.load(GOLDEN / family / "logits.npz") as file:
        return file["ids"], file["logits"]


def test_every_family_has_a_fixture():
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_devices_in_float64(family):
    ids, expected = golden(family)
    with jax.enable_x64(True):
        model = load_hf(GOLDEN / family, make_mesh(MESH), dtype="float64")
        np.testing.assert_allclose(model(ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_device_in_float32_and_back(family, tmp_path):
    ids, expected = golden(family)
    model = load_hf(GOLDEN / family)
    logits = model(ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    known = open_folder(GOLDEN / family).family
    assert known.model_type == family_of(model.run).model_type == family and not differences(known, model.run)
    write_folder(tmp_path / "out", model.run, model.weights, known, "F32")
    before, after = (load_file(folder / "model.safetensors") for folder in (GOLDEN / family, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "files that the library alone may read"
    again = open_folder(tmp_path / "out")
    assert again.fields == open_folder(GOLDEN / family).fields


def test_load_hf_is_found_at_the_top():
    assert moe_jax.load_hf is load_hf
    assert not hasattr(moe_jax, "load_pickle")
