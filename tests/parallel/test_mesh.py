import dataclasses

import jax
import pytest

from moe_jax.config import MeshConfig
from moe_jax.parallel import mesh as mesh_module
from moe_jax.parallel.mesh import make_mesh


def test_a_mesh_has_all_four_axes_and_keeps_tensor_then_expert_together():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}
    assert mesh.devices.flatten().tolist() == jax.devices()


def test_a_small_mesh_takes_the_first_devices():
    assert make_mesh(MeshConfig(expert=4)).devices.flatten().tolist() == jax.devices()[:4]


def test_too_few_devices():
    with pytest.raises(ValueError, match="needs 16 devices and there are 8"):
        make_mesh(MeshConfig(data=2, expert=8))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the mesh looks at in a TPU device: 2 slices of 2 x 2."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0


CHIPS = [Chip(i, i // 4, (i % 2, i // 2 % 2, 0)) for i in range(8)]


@pytest.mark.parametrize("shape", [(2, 1, 4, 1), (2, 2, 2, 1), (1, 2, 2, 2), (4, 1, 1, 2)])
def test_experts_and_tensor_stay_within_a_slice(shape):
    grid = mesh_module._grid(shape, CHIPS)
    assert grid.shape == shape
    assert {chip.id for chip in grid.flat} == set(range(8))
    for row in grid.reshape(-1, shape[2] * shape[3]):
        assert len({chip.slice_index for chip in row}) == 1


def test_experts_across_slices_are_refused():
    with pytest.raises(ValueError, match=r"make mesh\.data a multiple of 2"):
        mesh_module._grid((1, 1, 8, 1), CHIPS)
