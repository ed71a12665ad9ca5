"""Mixture-of-Experts research in JAX.

The rooms of the package stand on floors, and import only from below: CONTRIBUTING.md lists them. Axis letters are the
same everywhere, in shape annotations (`Float[Array, "G T D"]`) and in text. Those of a Mixture-of-Experts layer stand
on top of `moe_jax/moe/__init__.py`, those of the model around it on top of `moe_jax/models/__init__.py`.
"""
