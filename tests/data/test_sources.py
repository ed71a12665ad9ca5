from pathlib import Path
from typing import NamedTuple

import pytest

from moe_jax.config.schema import DataConfig
from moe_jax.data.sources import parse_sources
from moe_jax.data.sources.package import PythonPackage
from moe_jax.data.sources.stdlib import StandardLibrary


class Reading(NamedTuple):
    documents: list
    skipped: int


def collect(source):
    found = list(source.read())
    return Reading([document for document in found if document is not None], found.count(None))


def read(source, **fields):
    return collect(parse_sources(DataConfig(source=source, **fields))[0])


def domains(reading):
    return {document.name: document.domain for document in reading.documents}


def test_standard_library_by_domain(write):
    root = write(
        {
            "ast.py": "code",
            "json/decoder.py": "code ",
            "test/test_ast.py": "test",
            "test/notes.txt": "test ",
            "idlelib/idle_test/htest.py": "test  ",
            "idlelib/help.html": "prose",
            "pydoc_data/topics.py": "prose ",
            "LICENSE.txt": "prose  ",
            "site-packages/numpy/core.py": "not ours",
            "__pycache__/ast.pyc": b"\0",
            "lib.so": b"\0",
            "empty.py": "",
        }
    )
    reading = collect(StandardLibrary(root=root))
    assert {name: text.split()[0] for name, text in ((d.name, d.text.decode()) for d in reading.documents)} == {
        name: {"tests": "test"}.get(domain, domain) for name, domain in domains(reading).items()
    }
    assert len(reading.documents) == 8
    assert reading.skipped == 1


def test_the_running_python_has_code_and_prose():
    reading = read("stdlib")
    assert {"code", "prose"} <= set(domains(reading).values())
    assert [d.name for d in reading.documents] == sorted(d.name for d in reading.documents)


def test_text_directory(write):
    root = write({"news/b.txt": "b", "news/deep/a.txt": "a", "mail/c": "c", "top.md": "t", ".git/config": "hidden"})
    assert domains(read(f"text:{root}")) == {
        "mail/c": "mail",
        "news/b.txt": "news",
        "news/deep/a.txt": "news",
        "top.md": "text",  # the directory's own name
    }


def test_text_glob_and_single_file(write):
    root = write({"news/b.txt": "b", "news/c.md": "c", "mail/c.txt": "c"})
    assert domains(read(f"text:{root}/*/*.txt")) == {"mail/c.txt": "mail", "news/b.txt": "news"}
    assert domains(read(f"text:{root}/news/*.txt")) == {"b.txt": "news"}
    assert domains(read(f"text:{root}/n*")) == {"news/b.txt": "news", "news/c.md": "news"}
    assert domains(read(f"text:{root}/news/c.md")) == {"c.md": "news"}


def test_files_that_are_not_text_are_counted(write):
    root = write({"a": b"\0\1", "b": "", "c": "text", "d": b"\xff\xfe\xfd"})
    reading = read(f"text:{root}")
    assert (domains(reading), reading.skipped) == ({"c": "text"}, 3)


def test_json_lines(write):
    lines = ['{"body": "caf\\u00e9", "text": 1}', "", '{"body": ""}', '{"body": "\\ud800x", "domain": "odd"}']
    root = write({"wiki.jsonl": "\n".join(lines)})
    reading = read(f"jsonl:{root}/*.jsonl", text_field="body")
    assert [(d.text, d.domain, d.name) for d in reading.documents] == [
        ("café".encode(), "wiki", "wiki.jsonl:1"),
        (b"?x", "odd", "wiki.jsonl:4"),
    ]
    assert reading.skipped == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"bad\.jsonl:2 is not JSON"),
        (b'{"text": "\xff"}', r"bad\.jsonl:2 is not JSON"),
        ('{"body": "x"}', r"bad\.jsonl:2 has no string 'text': set data\.text_field"),
        ('{"text": null}', r"bad\.jsonl:2 has no string 'text'"),
        ("[1]", r"bad\.jsonl:2 has no string 'text'"),
    ],
)
def test_a_bad_json_line_is_named(write, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    root = write({"bad.jsonl": b'{"text": "good"}\n' + line})
    with pytest.raises(ValueError, match=message):
        read(f"jsonl:{root}/bad.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:{root}/nowhere", r"data\.source='text:.*nowhere' does not exist: check the path"),
        ("text:{root}/*.zzz", r"data\.source='text:.*zzz' matches no file: check the glob"),
        ("books", r"data\.source='books' is not a source: use stdlib, text:"),
        ("text:", r"data\.source='text:' is not a source"),
        ("stdlib:x", r"data\.source='stdlib:x' is not a source"),
        ("", r"data\.source='' is not a source"),
        ("pypi:Django", r"data\.source='pypi:Django' names no release: pin one, as in pypi:Django==5\.1\.4"),
        ("pypi:Django>=5", r"names no release"),
        ("pypi:Django==5.*", r"names no release"),
    ],
)
def test_sources_that_cannot_be_read(write, source, message):
    root = write({"a": "text"})
    with pytest.raises(ValueError, match=message) as error:
        read(source.format(root=root))
    assert "\n" not in str(error.value)


def test_sources_joined_by_commas(tmp_path):
    sources = parse_sources(DataConfig(source="stdlib, text:/books,pypi:Django==5.1.4", cache_dir=str(tmp_path)))
    assert [source.spec for source in sources] == ["stdlib", "text:/books", "pypi:Django==5.1.4"]
    assert isinstance(sources[2], PythonPackage)
    assert sources[2].archive.directory == Path(tmp_path, "archives", "django-5.1.4")


def test_fingerprint_changes_with_a_file(write):
    root = write({"a.txt": "one", "b.txt": "two"})
    source = parse_sources(DataConfig(source=f"text:{root}"))[0]
    before = source.fingerprint()
    assert source.fingerprint() == before
    write({"b.txt": "three"})
    assert source.fingerprint() != before
