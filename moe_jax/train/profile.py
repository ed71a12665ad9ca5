"""A trace of some steps for TensorBoard's profiler, XProf or Perfetto."""

from pathlib import Path

import jax
from jaxtyping import PyTree


class Profile:
    """Traces the steps `window` = (first step, number of steps) into WORKDIR/profile; () traces nothing.

    A run that starts inside the window traces what is left of it, and one that ends inside still writes its trace.
    """

    def __init__(self, workdir: Path, window: tuple[int, ...]):
        first, steps = window or (0, 0)
        self._steps = range(first, first + steps)
        self._directory = workdir / "profile"
        self._tracing = False

    def before_step(self, step: int, pending: PyTree) -> None:
        """Starts or ends the trace where `step`, counted from 0, asks for it."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif step not in self._steps:
            self.stop(pending)

    def stop(self, pending: PyTree = None) -> None:
        """Ends a trace that runs, after waiting for `pending`, the work it should show."""
        if self._tracing:
            self._tracing = False
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
