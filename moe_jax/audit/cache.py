"""The compiled step of an audit, kept in its work directory: a second look at the same program compiles nothing."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
from pathlib import Path

from absl import logging
from jax.sharding import Mesh

from moe_jax.audit.answers import DECODE, TRAIN, Work
from moe_jax.audit.compile import Built, build, compile_decode_step, compile_train_step
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.files.source import source_hash
from moe_jax.parallel.compiler_options import compiler_options

PROGRAM = "program.json.gz"
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")  # packages whose version changes a program


def cached(workdir: Path, target: str, run: RunConfig, mesh: Mesh, work: Work) -> Built:
    """The step of `work`, compiled for the devices of `mesh` unless `workdir` has it already."""
    key, path = _key(target, run, mesh, work), workdir / PROGRAM
    try:
        kept = json.loads(gzip.decompress(path.read_bytes()))
        if kept.pop("key") == key:
            logging.info("%s has the program: nothing is compiled", path)
            return Built(**kept)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is none, or another one, or it is damaged: it is written anew
    if work.mode == TRAIN:
        built = build(lambda: compile_train_step(run, mesh))
    else:
        piece = 1 if work.mode == DECODE else work.piece
        built = build(lambda: compile_decode_step(run, mesh, work.places, work.length, piece, work.form))
    path.write_bytes(gzip.compress(json.dumps({"key": key, **built._asdict()}).encode(), compresslevel=1))
    return built


def _key(target: str, run: RunConfig, mesh: Mesh, work: Work) -> str:
    """Everything that a program depends on: what runs where, this package's code, and the compilers."""
    versions = {}
    for package in COMPILERS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    options = compiler_options(mesh.devices.flat[0].platform)
    parts = [target, flatten(run), dataclasses.asdict(work), versions, options, source_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
