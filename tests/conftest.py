"""Every test sees eight fake CPU devices and has array shapes checked against the annotations of `moe_jax`."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("moe_jax", "beartype.beartype")
