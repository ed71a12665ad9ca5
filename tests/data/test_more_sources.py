"""Sources beyond plain files: links, names, compression, archives, Parquet, ArrayRecord, ids made elsewhere."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.data.sources import parse_sources, split_sources
from moe_jax.data.sources.ids import documents_of
from moe_jax.data.tokenizers.plain import ByteTokenizer

IDS = {"tokenizer": "ids", "ids_vocab_size": 10, "end_of_document": "9"}


def source(spec, **fields):
    return parse_sources(DataConfig(source=spec, **fields))[0]


def read(spec, **fields):
    """(name, domain, text) of each document, None for each that is skipped."""
    found = source(spec, **fields).read()
    return [(d.name, d.domain, d.text.decode()) if d is not None else None for d in found]


def read_ids(spec, **fields):
    """(name, domain, ids) of each document, None for each that is skipped."""
    found = source(spec, **{**IDS, **fields}).read()
    return [(d.name, d.domain, d.ids.tolist()) if d is not None else None for d in found]


def refusal(spec, error=ConfigError, **fields):
    with pytest.raises(error) as caught:
        list(source(spec, **fields).read())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_linked_folders_and_files_are_read(write, tmp_path):
    root = write({"a/x.txt": "x"})
    elsewhere = write({"deep/y.txt": "y", "z.txt": "z"}, "elsewhere")
    (root / "b").symlink_to(elsewhere)
    (root / "c.txt").symlink_to(elsewhere / "z.txt")
    assert [d[0] for d in read(f"text:{root}")] == ["a/x.txt", "b/deep/y.txt", "b/z.txt", "c.txt"]
    (tmp_path / "link").symlink_to(root)
    assert len(read(f"text:{tmp_path}/link")) == len(read(f"text:{tmp_path}/li*")) == 4


def test_links_in_circles_and_to_nowhere(write):
    root = write({"a/x.txt": "x"})
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.txt").symlink_to(root / "nowhere")
    assert read(f"text:{root}") == [("a/x.txt", "a", "x"), None, None], "the two links that lead nowhere"


def test_the_order_is_that_of_whole_names(write):
    names = ["a-b/1", "a.txt", "a/1", "a/b/2", "a/b.txt", "ab", "b"]
    root = write({name: name for name in names[::-1]})
    assert [d[0] for d in read(f"text:{root}")] == sorted(names)


@pytest.mark.parametrize("function", ["scandir", "open"])
def test_what_cannot_be_read_is_named(write, monkeypatch, function):
    root = write({"a/x.txt": "x", "b/y.txt": "y"})
    module = "moe_jax.data.sources.files.os.scandir" if function == "scandir" else "pathlib.Path.read_bytes"
    original = os.scandir if function == "scandir" else type(root).read_bytes

    def refuse(path):
        if "b" in os.fspath(path).removeprefix(str(root)):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(module, refuse)
    assert "/b" in (message := refusal(f"text:{root}", MachineError))
    assert message.endswith("cannot be read (Permission denied): make it readable, or leave it out")


def test_a_file_name_that_is_not_utf_8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"text", b"caf\xe9")
    os.makedirs(folder)
    for name in (b"\xff.txt", b"b.txt"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name[:1] + b" text" if name != b"\xff.txt" else b"text")
    found = read(f"text:{tmp_path}/text")
    assert [(domain, text) for _, domain, text in found] == [("caf\\xe9", "b text"), ("caf\\xe9", "text")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"text:/a\,b,stdlib", ["text:/a,b", "stdlib"]),
        (r"text:/a\\,stdlib", ["text:/a" + "\\", "stdlib"]),
        (r"text:/a\b,text:/c d:e", [r"text:/a\b", "text:/c d:e"]),
        ("text:/a\\ , stdlib ", ["text:/a ", "stdlib"]),
        (r"text:/\,\,", ["text:/,,"]),
        (",", ["", ""]),
    ],
)
def test_commas_spaces_and_colons_in_paths(written, meant):
    assert [f"{prefix}:{argument}" if argument else prefix for _, prefix, argument in split_sources(written)] == meant


def test_a_comma_in_a_path_is_read(write):
    root = write({"a,b: c/x.txt": "x"})
    assert read(f"text:{root}/a\\,b: c") == [("x.txt", "a,b: c", "x")]


@pytest.mark.parametrize("path", ["/x" * 3000, "/" + "x" * 300, "~nobody-of-this-name/x", "/a\0b"])
def test_what_cannot_be_a_path(path):
    assert "cannot be a path" in refusal(f"text:{path}")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "[" * 100_000, "9" * 5000])
def test_json_that_is_deep_or_large(write, line):
    root = write({"a.jsonl": '{"text": "x"}\n' + line})
    assert "a.jsonl:2 is n" in refusal(f"jsonl:{root}/a.jsonl")


LINES = b'{"text": "one"}\n\n{"text": ""}\n{"text": "two", "domain": "d"}\n'
READ = [("w.jsonl:1", "w", "one"), None, ("w.jsonl:4", "d", "two")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_lines(write, suffix):
    zstandard = pytest.importorskip("zstandard")
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    data = compress(LINES[:20]) + compress(LINES[20:])  # several frames in a file, as parallel compressors write them
    root = write({f"w.jsonl{suffix}": data, f"cut.jsonl{suffix}": data[:-9], f"no.jsonl{suffix}": b"garbage"})
    found = read(f"jsonl:{root}/w.jsonl{suffix}")
    assert found == [d and (d[0].replace(".jsonl", f".jsonl{suffix}"), *d[1:]) for d in READ]
    for name in ("cut", "no"):
        assert f"{name}.jsonl{suffix}' is not whole" in refusal(f"jsonl:{root}/{name}.jsonl{suffix}")


def write_archive(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    if path.suffix == ".zst":
        write_archive(path.with_suffix(""), files)
        data = path.with_suffix("").read_bytes()
        path.with_suffix("").unlink()
        path.write_bytes(pytest.importorskip("zstandard").compress(data))
        return
    with tarfile.open(path, {"gz": "w:gz", "xz": "w:xz"}.get(path.suffix[1:], "w")) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz", ".tgz", ".tar.zst"])
def test_text_in_an_archive(tmp_path, suffix):
    path = tmp_path / f"books{suffix}"
    write_archive(path, {"./b/1.txt": b"one", "a.txt": b"two", "b/.hidden": b"no", "b/bin": b"\0"})
    assert read(f"text:{path}") == [("./b/1.txt", "b", "one"), ("a.txt", "books", "two"), None]
    whole = path.read_bytes()
    for damaged in (whole[:40], whole[: len(whole) // 2] + b"\xff" * 20 + whole[len(whole) // 2 + 20 :]):
        path.write_bytes(damaged)
        if damaged != whole[:40] and suffix in (".tar", ".tgz"):
            continue  # here it has no checksum over its files
        assert "is no whole tar or zip archive" in refusal(f"text:{path}")
    assert read(f"text:{tmp_path}") == [None], "in a folder it is a file like others"


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


def test_parquet(tmp_path, parquet):
    arrow = pytest.importorskip("pyarrow")
    rows = {"text": ["one", None, "", "two"], "domain": ["d", "d", "d", None], "n": [1, 2, 3, 4]}
    parquet.write_table(arrow.table(rows), tmp_path / "w.parquet", row_group_size=2)
    expected = [("w.parquet:1", "d", "one"), None, None, ("w.parquet:4", "w", "two")]
    assert read(f"parquet:{tmp_path}/*.parquet") == expected
    assert "has no column 'body' of text: set data.text_field to one of text, domain" in refusal(
        f"parquet:{tmp_path}/w.parquet", text_field="body"
    )
    assert "has no column 'n' of text, but one of type int64: set" in refusal(
        f"parquet:{tmp_path}/w.parquet", text_field="n"
    )
    repeated = arrow.table({"text": arrow.array(["a", "b", "a"]).dictionary_encode()})  # as pandas writes categories
    parquet.write_table(repeated, tmp_path / "d.parquet")
    assert [text for _, _, text in read(f"parquet:{tmp_path}/d.parquet")] == ["a", "b", "a"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:8] + b"\xff" * 40 + data[48:]]
)
def test_damaged_parquet(tmp_path, parquet, damage):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "w.parquet"
    parquet.write_table(arrow.table({"text": [str(i) * 50 for i in range(50)]}), path)
    path.write_bytes(damage(path.read_bytes()))
    assert "w.parquet" in refusal(f"parquet:{path}", (ConfigError, MachineError))


def test_array_record(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    path = tmp_path / "w.array_record"
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in (b"one", b"\0", "zwei ü".encode()):
        writer.write(record)
    writer.close()
    expected = [("w.array_record:1", "w", "one"), None, ("w.array_record:3", "w", "zwei ü")]
    assert read(f"arrayrecord:{path}") == expected
    path.write_bytes(b"no records")
    assert "is no whole ArrayRecord file" in refusal(f"arrayrecord:{path}")


@pytest.mark.parametrize("library", ["pyarrow", "zstandard", "grain.sources"])
def test_a_library_that_is_missing(write, monkeypatch, library):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("moe_jax.data.sources.source.importlib.import_module", missing)
    root = write({"a": "x", "a.jsonl.zst": "x"})
    spec = {"pyarrow": "parquet:{}/a", "zstandard": "jsonl:{}/a.jsonl.zst", "grain.sources": "arrayrecord:{}/a"}
    package = library.partition(".")[0]
    expected = f"needs the package {package}: pip install 'moe_jax[data]' (or {package})"
    assert refusal(spec[library].format(root)).endswith(expected)


STREAM = [1, 2, 9, 9, 3, 9, 4, 5]
DOCUMENTS = [(0, [1, 2]), None, (4, [3]), (6, [4, 5])]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint8", "int64"])
@pytest.mark.parametrize("suffix", ["npy", "bin"])
def test_ids_made_elsewhere(tmp_path, monkeypatch, dtype, suffix):
    monkeypatch.setattr("moe_jax.data.sources.token_files.BLOCK", 3)
    path = tmp_path / f"w.{suffix}"
    array = np.array(STREAM, dtype)
    np.save(path, array.reshape(2, 4)) if suffix == "npy" else array.tofile(path)
    expected = [d and (f"w.{suffix}:{d[0]}", "w", d[1]) for d in DOCUMENTS]
    assert read_ids(f"tokens:{path}", ids_dtype=dtype) == expected


def test_a_long_run_of_ids_is_cut(monkeypatch):
    monkeypatch.setattr("moe_jax.data.sources.ids.LONGEST", 4)
    tokenizer = ByteTokenizer()
    blocks = [np.arange(6), np.array([6, 256, 7]), np.full(9, 8)]
    found = documents_of("tokens:x", "x", "x", "d", blocks, tokenizer)
    assert [(d.name, d.ids.tolist()) for d in found] == [
        ("x:0", [0, 1, 2, 3]), ("x:4", [4, 5, 6]), ("x:8", [7, 8, 8, 8, 8]), ("x:13", [8, 8, 8, 8]), ("x:17", [8])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (np.array([1, 10], "u2").tobytes(), {}, "id 10 at position 1 of"),
        (b"123", {}, "3 bytes of"),
        (b"", {"ids_vocab_size": 0}, "data.ids_vocab_size=0 with data.tokenizer='ids': give the number of ids"),
        (b"", {"end_of_document": "10"}, "data.end_of_document=10 is outside [0, 9]"),
        (b"", {"end_of_document": "9" * 5000}, "999' with data.tokenizer='ids': give its id"),
        (b"", {"end_of_document": "</s>"}, "data.end_of_document='</s>' with data.tokenizer='ids': give its id"),
        (b"", {"tokenizer": "bpe", "end_of_document": ""}, "holds ids and data.tokenizer='bpe' makes its own"),
    ],
)
def test_ids_that_do_not_fit(write, content, fields, message):
    root = write({"w.bin": content})
    assert message in refusal(f"tokens:{root}/w.bin", **{**IDS, **fields})


def test_a_numpy_file_that_holds_no_ids(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(3))
    assert "holds float64 in the shape (3,): save integers" in refusal(f"tokens:{tmp_path}/w.npy", **IDS)
    np.save(tmp_path / "w.npy", np.arange(8, dtype="u2"))
    whole = (tmp_path / "w.npy").read_bytes()
    for data, size in ((whole[:-8], 8), (whole + b"more", 20)):
        (tmp_path / "w.npy").write_bytes(data)
        assert f"holds {size} bytes of numbers, and its header says 16: get it again" in refusal(
            f"tokens:{tmp_path}/w.npy", **IDS
        )
    (tmp_path / "w.npy").write_bytes(b"no array")
    assert "is no NumPy file" in refusal(f"tokens:{tmp_path}/w.npy", **IDS)


def test_text_cannot_be_encoded_without_a_tokenizer(write):
    root = write({"a": "x"})
    assert "holds text, which data.tokenizer='ids' cannot encode" in refusal(f"text:{root}", **IDS)


def write_megatron(prefix, documents, dtype="uint16", code=8):
    """As Megatron-LM's IndexedDatasetBuilder: documents are lists of sequences."""
    sequences = [np.array(s, dtype) for document in documents for s in document]
    (prefix.parent / f"{prefix.name}.bin").write_bytes(b"".join(s.tobytes() for s in sequences))
    sizes = np.array([len(s) for s in sequences], np.int32)
    offsets = np.cumsum([0, *(s.nbytes for s in sequences[:-1])], dtype=np.int64)[: len(sequences)]
    bounds = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(bounds))
    index = header + sizes.tobytes() + offsets.tobytes() + bounds.tobytes()
    (prefix.parent / f"{prefix.name}.idx").write_bytes(index)


@pytest.mark.parametrize(("dtype", "code"), [("uint16", 8), ("int32", 4)])
def test_megatron(tmp_path, dtype, code):
    write_megatron(tmp_path / "w.text", [[[1, 2], [3, 9]], [[4]], [[9]]], dtype, code)
    expected = [("w.text:0", "w.text", [1, 2, 3]), ("w.text:1", "w.text", [4]), None]
    for spec in ("w.text", "w.text.bin", "w.text.idx", "*.idx"):
        assert read_ids(f"megatron:{tmp_path}/{spec}") == expected


def test_damaged_megatron(tmp_path):
    write_megatron(tmp_path / "w", [[[1, 2], [3, 9]], [[4]]])
    (tmp_path / "w.bin").write_bytes(b"\0\0")
    assert "is shorter than its index says" in refusal(f"megatron:{tmp_path}/w", **IDS)
    index = (tmp_path / "w.idx").read_bytes()
    for damaged in (index[:-3], index[:20], b"", b"X" + index[1:], index[:9] + b"\7" + index[10:]):
        (tmp_path / "w.idx").write_bytes(damaged)
        assert "is no index of Megatron-LM" in refusal(f"megatron:{tmp_path}/w", **IDS)
    assert "does not exist" in refusal(f"megatron:{tmp_path}/none", **IDS)


def test_fingerprints_change_with_what_is_read(tmp_path):
    write_megatron(tmp_path / "w", [[[1, 2]]])
    megatron = source(f"megatron:{tmp_path}/w", **IDS)
    before = json.dumps(megatron.fingerprint())
    assert json.dumps(megatron.fingerprint()) == before
    (tmp_path / "w.bin").write_bytes(b"\3\0\4\0")
    assert json.dumps(megatron.fingerprint()) != before
    tokens = [source(f"tokens:{tmp_path}/w.bin", ids_dtype=dtype, **IDS).fingerprint() for dtype in ("uint8", "uint16")]
    assert tokens[0] != tokens[1]
