"""The MoE blocks of transformers against our layer: the same weights and tokens, values and gradients in float32."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")

B, L, D, F, E = 3, 40, 32, 48, 16
SIZES = {"hidden_size": D, "intermediate_size": F}
OURS = {"num_experts": E, "d_ff": F, "activation": "swiglu", "group_size": L, "router": "top_k"}
BLOCKS = {  # module, class, their fields, ours
    "mixtral": (
        "MixtralSparseMoeBlock",
        {**SIZES, "num_local_experts": E, "num_experts_per_tok": 2},
        {"top_k": 2, "normalize_gates": True},
    ),
    "olmoe": ("OlmoeSparseMoeBlock", {**SIZES, "num_experts": E, "num_experts_per_tok": 8}, {"top_k": 8}),
    "deepseek_v3": (
        "DeepseekV3MoE",
        {
            **SIZES, "moe_intermediate_size": F, "n_routed_experts": E, "n_shared_experts": 2,
            "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
        {
            "router": "sigmoid", "top_k": 4, "normalize_gates": True, "routed_scaling": 2.5, "expert_groups": 4,
            "top_groups": 2, "group_score": "top2", "balance_bias": True, "num_shared_experts": 2,
            "shared_d_ff": 2 * F,
        },
    ),
    "switch_transformers": (
        "SwitchTransformersSparseMLP",
        {
            "d_model": D, "d_ff": F, "num_experts": E, "expert_capacity": 3, "dropout_rate": 0.0,
            "router_jitter_noise": 0.0,
        },
        {"router": "switch", "top_k": 1, "activation": "relu", "capacity_factor": 3 * E / L},
    ),
}  # fmt: skip
DROPS = ("switch_transformers",)  # what is beyond its capacity
CASES = [(name, dispatcher) for name in BLOCKS for dispatcher in ("capacity", "dropless")[: 1 if name in DROPS else 2]]


def their_block(name):
    """Random weights, biases of the balance too."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    kind, fields, _ = BLOCKS[name]
    config = next(value for key, value in vars(module).items() if key.lower() == name.replace("_", "") + "config")
    config = config(**fields)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    block = getattr(module, kind)(config)
    with torch.no_grad():
        for weight in [*block.parameters(), *block.buffers()]:
            weight.copy_(torch.randn(weight.shape) * (weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1))
    return block


def as_ours(named):
    """Their weights, or their gradients, by the names of ours."""
    named = {name: np.asarray(value) for name, value in named.items()}
    if "router.classifier.weight" in named:
        stacked = lambda name: np.stack([named[f"experts.expert_{e}.{name}.weight"].T for e in range(E)])
        ours = {"router": named["router.classifier.weight"].T, "up": stacked("wi"), "down": stacked("wo")}
    else:
        gate, up = np.split(named["experts.gate_up_proj"].transpose(0, 2, 1), 2, axis=-1)
        down = named["experts.down_proj"].transpose(0, 2, 1)
        ours = {"router": named["gate.weight"].T, "gate": gate, "up": up, "down": down}
    shared = ("gate", "up", "down") if "shared_experts.up_proj.weight" in named else ()
    return ours | {f"shared_{name}": named[f"shared_experts.{name}_proj.weight"].T for name in shared}


def parts_of(layer):
    """Our weights by the same names."""
    parts = {"router": layer.router.weight}
    parts |= {name: part for name in ("gate", "up", "down") if (part := getattr(layer.experts, name)) is not None}
    if layer.shared is not None:
        parts |= {f"shared_{name}": getattr(layer.shared, name) for name in ("gate", "up", "down")}
    return parts


def ours(name, dispatcher, weights, bias, x, towards):
    """(y, gradients of x and of the weights by name) of our layer."""
    fields = {**OURS, "capacity_factor": E / BLOCKS[name][2]["top_k"], **BLOCKS[name][2]}
    layer = make_layer(MoEConfig(**fields, dispatcher=dispatcher), D)
    for key, part in parts_of(layer).items():
        assert part.shape == weights[key].shape
        part[...] = jnp.asarray(weights[key])
    if bias is not None:
        layer.router.balance_bias[...] = jnp.asarray(bias)
    graphdef, state, rest = nnx.split(layer, nnx.Param, ...)

    def loss(state, x):
        y, _ = nnx.merge(graphdef, state, rest)(x, plain_context((B, L)), True)
        return jnp.sum(y * towards)

    by_state, by_x = jax.jit(on_one_device(jax.grad(loss, argnums=(0, 1))))(state, x)
    gradients = {key: part[...] for key, part in parts_of(nnx.merge(graphdef, by_state, rest)).items()}
    return apply(layer, x)[0], gradients | {"x": by_x}


@pytest.mark.parametrize(("name", "dispatcher"), CASES)
def test_values_and_gradients(name, dispatcher):
    rng = np.random.default_rng(0)
    x, towards = rng.normal(size=(2, B, L, D)).astype(np.float32)
    block = their_block(name)
    there = torch.tensor(x, requires_grad=True)
    y = block(there)
    (y * torch.tensor(towards)).sum().backward()
    weights = as_ours({key: value.detach() for key, value in block.named_parameters()})
    expected = as_ours({key: value.grad for key, value in block.named_parameters()}) | {"x": there.grad.numpy()}
    bias = next((value for key, value in block.named_buffers() if "bias" in key), None)
    actual, gradients = ours(name, dispatcher, weights, bias, x, towards)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))
    close(actual, y.detach().numpy())
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        close(gradients[key], gradient)
    if name in DROPS:
        dropped = (y.detach().numpy() == 0).all(axis=-1).mean()
        assert 0.05 < dropped < 0.9
