"""Names for parts of a model's weights, which `train.trainable` and `lora.targets` choose by."""

import fnmatch
from collections.abc import Sequence

# Beside patterns of paths like "segments/1/*/attention/q", where "*" stands for slashes too.
GROUPS = {
    "attention": "*/attention/*",
    "dense": "*/feed_forward/*",  # of layers that are no MoE layers
    "embedding": "embedding",
    "experts": "*/moe/experts/*",
    "head": "head",
    "lora": "*/lora/*",
    "moe": "*/moe/*",
    "norms": "*norm*/scale",
    "router": "*/moe/router/*",
    "shared": "*/moe/shared*",
}


def matches(paths: Sequence[str], pattern: str) -> list[bool]:
    """Whether each path is one of a group, or of what a pattern stands for."""
    glob = GROUPS.get(pattern, pattern)
    return [fnmatch.fnmatchcase(path, glob) for path in paths]


def present(paths: Sequence[str]) -> list[str]:
    """The groups that some of the paths belong to."""
    return [name for name in GROUPS if any(matches(paths, name))]
