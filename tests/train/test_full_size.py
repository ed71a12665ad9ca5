"""The training step of full-size configurations on a small mesh: all layers, traced from shapes alone."""

import runpy

import pytest
from configurations import CONFIGS, FILES

from moe_jax.config.layers import segments
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.setup import lower_train_step

FULL_SIZE = [name for name in FILES if name.startswith(("models/", "glam", "mixtral")) and name != "models/base.py"]
KINDS = ("deepseek_v3", "gpt_oss_20b", "llama_3_1_405b", "olmoe_1b_7b", "qwen1_5_moe_a2_7b", "qwen3_30b_a3b")
SLOW = [name for name in FULL_SIZE if name.removeprefix("models/").removesuffix(".py") not in KINDS]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FULL_SIZE])
def test_the_step_is_traced_on_eight_devices(name):
    """A device multiplies with its own piece of the stacked feed-forwards, and sends tokens to experts."""
    config = runpy.run_path(str(CONFIGS / name))["get_config"]()
    expert = 2 if config.moe.num_experts else 1
    config.update_from_flattened_dict(
        {
            **{"mesh.data": 1, "mesh.fsdp": 4 // expert, "mesh.expert": expert, "mesh.tensor": 2},
            "data.batch_size": 4 * max(1, config.moe.group_size // config.data.sequence_length),
        }
    )
    run = resolve(config, 8)
    text = lower_train_step(task_of(run), make_mesh(run.mesh)).as_text()
    repeats, (*_, layer) = segments(run)[-1].repeats, segments(run)[-1].pattern
    width = run.model.d_model
    if layer.moe is None:
        piece = (repeats, width // 4, layer.feed_forward.d_ff // 2)
    else:
        piece = (repeats, layer.moe.num_experts // 2, width // 2, layer.moe.d_ff // 2)
    assert f"tensor<{'x'.join(map(str, piece))}xf32>" in text
    assert ("all_to_all" in text) == (expert == 2)
