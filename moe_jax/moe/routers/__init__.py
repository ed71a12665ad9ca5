"""Routers that look at whole groups."""

import moe_jax.moe.router  # noqa: F401, which names them
