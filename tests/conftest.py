"""Every test sees eight fake CPU devices and has array shapes checked against the annotations of `moe_jax`."""

import os
import signal

# A shell that starts a job behind a script has it ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs here run for milliseconds: without the back end's optimisation they compile several times faster.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402, after the flags that JAX reads when it is imported

install_import_hook("moe_jax", "beartype.beartype")

pytest_plugins = ["tiny_run"]
