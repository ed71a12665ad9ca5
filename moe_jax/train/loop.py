"""The training loop: resume, step, measure, evaluate, checkpoint, stop when asked."""

import io
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from absl import logging

from moe_jax.config.rules import MachineError
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.journal import workdir as records
from moe_jax.journal.hparams import hparams
from moe_jax.journal.metrics import MetricsWriter
from moe_jax.journal.progress import Progress
from moe_jax.journal.reading import STEP_SECONDS, last_line, training_seconds
from moe_jax.parallel.hardware import peak_flops, total_memory
from moe_jax.parallel.processes import Agreement, check_alike
from moe_jax.resolve.counting import count
from moe_jax.resolve.describe import describe, markdown, warn
from moe_jax.tasks.results import DATA, flops_per_step, hparams_metrics, summarize
from moe_jax.tasks.task import TrainBatches
from moe_jax.train.checkpoints import Checkpoints, HostState, Restored
from moe_jax.train.clock import Clock
from moe_jax.train.evaluation import Evaluation
from moe_jax.train.guard import Guard, check_finite
from moe_jax.train.profile import Profile
from moe_jax.train.setup import Setup, check_memory, set_up
from moe_jax.train.shown import curves, write_loads, write_pictures
from moe_jax.train.signals import StopRequest
from moe_jax.train.state import init_state, num_params, with_grouped_matmul
from moe_jax.train.step import StepMetrics
from moe_jax.train.trainable import pick
from moe_jax.train.watch import Watch


def train(run: RunConfig, workdir: Path) -> int:
    """Trains `run` in `workdir`, from its newest checkpoint where it has one, and writes summary.json at the end.

    Returns the exit code: 0, or 128 + the number of the signal (one of `StopRequest.SIGNALS`) that ended it early,
    checkpointed. Raises, in one line each, ConfigError or ValueError for what cannot run, MachineError where the state
    cannot be saved in the end, and DivergedError where training has left the finite numbers.
    """
    check_memory(run, total_memory())
    first_process = jax.process_index() == 0
    with records.own(workdir, first_process) as home:
        records.prepare(workdir, run, ("profile",) if run.train.profile else (), first_process)
        return _train(run, workdir, home)


def _train(run: RunConfig, workdir: Path, home: records.Home) -> int:
    warn(run)
    changed = {name: value for name, value in flatten(run).items() if value != flatten(RunConfig())[name]}
    logging.info("Fields that differ from the defaults: %s", changed)
    for line in describe(run):
        logging.info(line)
    setup = set_up(run)
    if (named := with_grouped_matmul(run, setup.mesh.devices.flat[0]).moe.grouped_matmul) != "auto":
        logging.info("Grouped matmuls: %s", named)
    assert num_params(setup.model.shapes) == count(run).total_params
    trained = num_params(pick(setup.model.shapes, setup.model.trained))
    if trained < count(run).total_params:
        logging.info("%s of %s parameters are trained", f"{trained:,}", f"{count(run).total_params:,}")
    records.check_data(workdir, setup.data.sha256)
    check_alike(flatten(run) | {"data": setup.data.sha256, "moe_jax": version("moe_jax"), "jax": jax.__version__})
    batches = setup.data.train_batches(*setup.part.number)
    with StopRequest() as stop, Checkpoints(workdir, run.checkpoint) as checkpoints:
        restored = checkpoints.restore(setup.shapes)
        if restored is None:
            records.refuse_lost_weights(workdir)
            restored = Restored(init_state(setup.task, setup.shapes, setup.optimizer), HostState(position=0))
        elif restored.weights_only:
            given = restored.state.variables
            restored = Restored(init_state(setup.task, setup.shapes, setup.optimizer, given), restored.host)
            logging.info("Begins with the weights that %s holds: %s", workdir, records.known_origin(workdir))
        else:
            batches.seek(restored.host.position)
            logging.info("Resumed at step %d", restored.state.step)
        first = int(restored.state.step)
        if first >= run.train.steps and records.is_finished(workdir, first):
            logging.info("All %d steps are done: raise train.steps to go on", first)
            return 0
        if jax.process_index() == 0:
            records.claim(workdir, run, setup.data.sha256)
        with MetricsWriter(workdir, first) as writer:
            writer.hparams(hparams(flatten(run)), hparams_metrics(run.task))
            writer.text(first, "config", markdown(run))
            _Loop(setup, restored, batches, checkpoints, writer, stop, workdir, home).run_to_end()
    if stop.signal:
        logging.warning("Stopped by signal %d; the same command continues", stop.signal)
    return stop.exit_code


class _Loop:
    """One life of a run, from its first step here to its last."""

    def __init__(
        self,
        setup: Setup,
        start: Restored,
        batches: TrainBatches,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        stop: StopRequest,
        workdir: Path,
        home: records.Home,
    ):
        self.setup, self.run, self.state, self.batches = setup, setup.run, start.state, batches
        self.checkpoints, self.writer, self.stop, self.workdir, self.home = checkpoints, writer, stop, workdir, home
        self.train_step = setup.compile_train_step()
        self.eval_step = setup.compile_eval_step()
        self.step = int(start.state.step)
        self.startup_seconds: float | None = None  # until the first step here was done
        task = setup.task
        shown = None if jax.process_index() == 0 else io.StringIO()  # one of several processes speaks for all
        self.progress = Progress(self.run.train.steps, self.step, task.units_per_step, f"{task.unit}s/s", shown)
        self.clock = Clock(task.units_per_step, self.step)
        self.speed = f"{task.unit}s_per_second"
        self.profile = Profile(workdir, self.run.train.profile)
        max_skipped, host = self.run.train.max_skipped, start.host
        self.guard = Guard(pick(start.state.params, setup.model.trained), max_skipped, host.skipped, host.in_a_row)
        self.watch = Watch(self.run)
        self.last = last_line(workdir, "train/loss")  # of an earlier life, in case that it did all the steps

    def run_to_end(self) -> None:
        run = self.run
        try:
            agreement = Agreement(run.train.steps)
            while not agreement.stop(self.step, self.stop.signal) and self.step < run.train.steps:
                self._one_step()
            if jax.process_count() > 1:
                self.stop.signal = agreement.signal
            self.profile.stop(self.state)
            self._checkpoint(last=True)
            if not self.stop.signal:
                self._finish()
        finally:
            self.profile.stop()
            self.progress.close()

    def _one_step(self) -> None:
        run = self.run
        self.profile.before_step(self.step, self.state)
        position = self.batches.position
        batch = self.setup.place(next(self.batches))
        self.state, metrics = self.train_step(self.state, batch)
        self.step += 1
        self.guard.add(self.step, position, metrics.finite)
        if self.startup_seconds is None:
            jax.block_until_ready(metrics)
            self.startup_seconds = time.perf_counter() - self.setup.started
        self.progress.update(self.step - 1)  # this one has only been started
        last = self.step == run.train.steps
        if self.step % run.log.every == 0 or last:
            self._log(jax.device_get(metrics), pictures=last or _due(self.step, run.eval.every))
        if _due(self.step, run.eval.every) and not last:
            self._evaluate(run.eval.batches)
        if self.step % run.checkpoint.every == 0 and not last:
            self._checkpoint()

    def _log(self, metrics: StepMetrics, pictures: bool) -> None:
        self.guard.read()
        self.home.check()
        rate = self.clock.lap(self.step)
        seconds = self.clock.units_per_step / rate
        speed = {f"train/{self.speed}": rate, STEP_SECONDS: seconds, "train/skipped_updates": self.guard.skipped}
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            flops = flops_per_step(flatten(self.run), count(self.run)._asdict(), self.run.task)
            speed["train/model_flops_utilisation"] = flops / (seconds * peak * self.setup.mesh.size)
        self.last = curves(metrics) | speed
        self.writer.scalars(self.step, self.last)
        if pictures:
            write_pictures(self.writer, self.step, metrics)
        if self.run.log.expert_loads:
            write_loads(self.writer, self.step, metrics)
        self.watch.loss(self.step, self.last["train/loss"])
        if self.step % self.run.log.every == 0:
            windows = [np.asarray(window) for window in self.state.window]
            per_token = [np.asarray(part["experts_per_token"]) for part in metrics.routing]
            self.watch.experts(self.step, windows, per_token)
        self.checkpoints.poll()
        self.progress.update(self.step, self.last["train/loss"])

    def _evaluate(self, batches: int) -> Evaluation:
        with self.clock.paused(self.state):
            evaluation = self.setup.evaluate(self.eval_step, self.state.variables, batches)
        self.writer.scalars(self.step, evaluation.as_metrics())
        self.progress.note(f"step {self.step}: {evaluation.scores.summary}")
        return evaluation

    def _checkpoint(self, last: bool = False) -> None:
        """Begins a checkpoint of finite weights. While updates are skipped there is no new one: the older are kept.

        Where the system refuses it, training goes on to the next, but the `last` one has to be written.
        """
        with self.clock.paused(self.state):
            self.guard.read()
            self.home.check()
            if self.guard.in_a_row and not last:
                return
            check_finite(self.state.params)
            try:
                host = HostState(self.batches.position, self.guard.skipped, self.guard.in_a_row)
                self.checkpoints.save(self.state, host)
                if last:
                    self.checkpoints.wait()
            except MachineError as error:
                if last:
                    raise MachineError(
                        f"{error}: mend that, and the same command goes on from the newest one"
                    ) from None
                logging.warning("%s: training goes on, and the next checkpoint takes its place", error)

    def _finish(self) -> None:
        evaluation = self._evaluate(self.run.eval.batches)
        measured = {
            "steps": self.step,
            **evaluation.as_results(),
            self.speed: self.clock.units_per_second() or self.last.get(f"train/{self.speed}", 0.0),
            "training_seconds": training_seconds(self.workdir),
            "startup_seconds": self.startup_seconds or 0.0,
            **count(self.run)._asdict(),
            DATA: self.setup.data.sha256,
            "epochs_by_source": dict(self.setup.data.epochs(self.step)),
        }
        results = summarize(measured, self.last, self.run.task)
        self.writer.finish("success", {name: results[name] for name in hparams_metrics(self.run.task)})
        if jax.process_index() == 0:
            records.write_summary(self.workdir, results | records.origin(self.workdir))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
