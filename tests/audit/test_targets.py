"""Names of hardware that is not there. Nothing here needs a compiler for it."""

import importlib.util
import os

import jax
import pytest

from moe_jax.audit import targets
from moe_jax.audit.targets import devices


def error(target):
    with pytest.raises(ValueError) as raised:
        devices(target)
    message = str(raised.value)
    assert "\n" not in message
    assert f"target={target}" in message
    return message


def test_an_unknown_chip_lists_those_known():
    message = error("v9:2x2")
    assert "'v9'" in message
    assert all(chip in message for chip in ("v5p", "tpu7x", "h100", "gb200"))


@pytest.mark.parametrize("target", ["v5p", "v5p:", "v5p:4x", "v5p:axb", "v5p:0x2x2", "h100:-8", "h100:8x", "h100"])
def test_a_malformed_topology_shows_a_good_one(target):
    assert ("as in v5p:2x2x1" if target.startswith("v5p") else "as in h100:8") in error(target)


@pytest.mark.parametrize(("target", "package"), [("v5p:2x2x1", "libtpu"), ("h100:8", "jax_plugins.xla_cuda12")])
def test_a_missing_compiler_says_how_to_install_it(target, package, monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name, *args: (
        None if name == "libtpu" or name.startswith("jax_plugins.xla_cuda") else find(name, *args)
    )
    monkeypatch.setattr(targets.importlib.util, "find_spec", absent)
    assert "make venv-aot" in error(target), package


@pytest.mark.parametrize("target", ["h100:16", "h100:2x12", "h100:1x2x8", "gb200:6", "gb200:144"])
def test_an_impossible_set_of_gpus(target, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name, *args: object())
    assert "NVLink domain" in error(target)


def test_the_environment_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "here")
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name, *args: object())
    described = type("Topology", (), {"devices": jax.devices()})
    monkeypatch.setattr(targets.topologies, "get_topology_desc", lambda *args, **kwargs: described)
    assert devices("v5e:2x4") == jax.devices()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "here"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
