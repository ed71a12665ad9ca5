"""Mixture-of-Experts research in JAX.

The rooms of the package stand on floors, and import only from below: CONTRIBUTING.md lists them. Axis letters are the
same everywhere, in shape annotations (`Float[Array, "G T D"]`) and in text. Those of a Mixture-of-Experts layer stand
on top of `moe_jax/moe/__init__.py`, those of the model around it on top of `moe_jax/models/__init__.py`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`load_hf`, which is looked up here and imported only then: much of the package is used without JAX."""
    if name == "load_hf":
        from moe_jax.interop.loaded_model import load_hf

        return load_hf
    raise AttributeError(f"module 'moe_jax' has no attribute {name!r}")
