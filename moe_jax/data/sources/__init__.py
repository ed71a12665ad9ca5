r"""Where documents come from: `data.source` is one or several `PREFIX:ARGUMENT`, joined by commas.

A new source is one class with the methods of `Source`, and one entry in `SOURCES`. A comma in a path is written as
`\,`, and a space at the end of one as `\ `.
"""

import re
from collections.abc import Iterator

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import DataConfig
from moe_jax.data.sources.array_record import ArrayRecord
from moe_jax.data.sources.json_lines import JsonLines
from moe_jax.data.sources.megatron import Megatron
from moe_jax.data.sources.package import package
from moe_jax.data.sources.parquet import Parquet
from moe_jax.data.sources.source import Source, SourceKind
from moe_jax.data.sources.stdlib import StandardLibrary
from moe_jax.data.sources.text import TextFiles
from moe_jax.data.sources.token_files import TokenFiles
from moe_jax.data.tokenizers import check_ids_or_text, fixed_tokenizer

SOURCES = {
    "stdlib": SourceKind("", lambda spec, argument, config: StandardLibrary()),
    "text": SourceKind("FOLDER_OR_GLOB", lambda spec, argument, config: TextFiles(spec, argument)),
    "jsonl": SourceKind(
        "FILE_OR_GLOB", lambda spec, argument, config: JsonLines(spec, argument, config.text_field, config.prompt_field)
    ),
    "pypi": SourceKind("NAME==VERSION", package),
    "parquet": SourceKind(
        "FILE_OR_GLOB", lambda spec, argument, config: Parquet(spec, argument, config.text_field, config.prompt_field)
    ),
    "arrayrecord": SourceKind("FILE_OR_GLOB", lambda spec, argument, config: ArrayRecord(spec, argument)),
    "tokens": SourceKind(
        "FILE_OR_GLOB",
        lambda spec, argument, config: TokenFiles(spec, argument, config.ids_dtype, fixed_tokenizer(config, spec)),
        holds_ids=True,
    ),
    "megatron": SourceKind(
        "PREFIX", lambda spec, argument, config: Megatron(spec, argument, fixed_tokenizer(config, spec)), holds_ids=True
    ),
}
LARGEST_RATIO = 1e6  # of two weights


def parse_sources(config: DataConfig) -> list[Source]:
    """The sources that `config.source` names; nothing is read yet, but for a tokenizer's file where they hold ids.

    Raises ConfigError as `check_sources` does.
    """
    check_sources(config)
    return [SOURCES[prefix].make(spec, argument, config) for spec, prefix, argument in split_sources(config.source)]


WITH_PROMPTS = ("jsonl", "parquet")  # sources whose documents have fields


def check_sources(config: DataConfig) -> None:
    """Raises ConfigError for a source that is unknown or incomplete, and where weights do not fit the sources."""
    sources = list(split_sources(config.source))
    for spec, prefix, argument in sources:
        if prefix not in SOURCES or bool(argument) != bool(SOURCES[prefix].argument):
            *first, last = (f"{name}:{kind.argument}" if kind.argument else name for name, kind in SOURCES.items())
            raise ConfigError(
                f"data.source={spec!r} is not a source: use {', '.join(first)} or {last}, several joined by commas"
            )
        if prefix == "pypi":
            package(spec, argument, config)
        check_ids_or_text(config, spec, SOURCES[prefix].holds_ids)
    if config.prompt_field and not any(prefix in WITH_PROMPTS for _, prefix, _ in sources):
        raise ConfigError(
            f"data.prompt_field={config.prompt_field!r} is of {' and '.join(WITH_PROMPTS)} sources, and "
            f"data.source={config.source!r} has none: leave it empty"
        )
    weights = config.weights
    if weights and len(weights) != len(sources):
        raise ConfigError(
            f"data.weights={weights} has {len(weights)} entries for {len(sources)} sources: give one "
            "each, or () to mix by size"
        )
    if any(not weight > 0 for weight in weights):
        raise ConfigError(f"data.weights={weights} has an entry that is not positive: leave that source out")
    if weights and not max(weights) <= LARGEST_RATIO * min(weights):
        raise ConfigError(
            f"data.weights={weights}: the largest is more than {LARGEST_RATIO:,.0f} times the smallest, whose source "
            "would hardly be seen: leave that one out"
        )


def split_sources(source: str) -> Iterator[tuple[str, str, str]]:
    """(as written, prefix, argument) of each source.

    A backslash before a comma makes it part of the path; two are a backslash at the end of a path. A backslash before a
    space at the end keeps the space. Any other backslash is itself.
    """
    first, *rest = re.split(r"(\\*),", source)
    written = meant = first
    for backslashes, text in zip(rest[::2], rest[1::2], strict=True):
        meant += "\\" * (len(backslashes) // 2)
        if len(backslashes) % 2:
            written, meant = f"{written}{backslashes},{text}", f"{meant},{text}"
        else:
            yield written.strip(), *_parts(meant)
            written = meant = text
    yield written.strip(), *_parts(meant)


def _parts(meant: str) -> tuple[str, str]:
    """Prefix and argument, without the spaces around them."""
    spec = meant.strip()
    space = meant[len(meant.rstrip()) :]
    if spec.endswith("\\") and space:
        spec = spec[:-1] + space[0]
    prefix, _, argument = spec.partition(":")
    return prefix, argument
