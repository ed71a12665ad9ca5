"""moe_jax: Mixture-of-Experts research in JAX."""

from setuptools import find_packages, setup

setup(
    name="moe_jax",
    version="0.1.0",
    description="Mixture-of-Experts research in JAX and Flax: routing, expert parallelism, and what both cost",
    license="Apache-2.0",
    packages=find_packages(include=["moe_jax", "moe_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "jaxtyping",
        "matplotlib",
        "ml-collections>=1.1",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "rich",
        "scipy",
        "tensorboard>=2.20",
        "tokenizers",
    ],
    extras_require={
        "test": ["beartype", "pytest", "pytest-xdist", "ruff", "submitit"],
        "hf": ["safetensors", "huggingface_hub"],
        "slurm": ["submitit"],
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "aot": ["jax[tpu]"],  # libtpu compiles for TPU anywhere; jax names the version that fits it
    },
)
