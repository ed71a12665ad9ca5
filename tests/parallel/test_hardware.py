import jax
import pytest

from moe_jax.parallel.hardware import peak_flops


@pytest.mark.parametrize(
    "device_kind, teraflops",
    [
        ("NVIDIA H100 80GB HBM3", 990),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 990),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_known_devices(device_kind, teraflops):
    assert peak_flops(device_kind) == teraflops * 1e12


def test_unknown_devices_have_no_peak():
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    assert peak_flops("NVIDIA H1000") is None
