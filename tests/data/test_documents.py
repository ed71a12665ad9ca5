import numpy as np
import pytest

from moe_jax.data.documents import Document, as_utf8, domain_name, printable


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("plain, é, 你好".encode(), "plain, é, 你好".encode()),
        (b"", None),
        (b"text\0", None),
        ("text".encode("utf-16"), None),  # has NUL bytes
        ("un café crème, s'il vous plaît".encode("latin-1"), "un caf\ufffd cr\ufffdme, s'il vous pla\ufffdt".encode()),
        ("привет, мир".encode("koi8-r"), None),  # nearly all of it would be replaced
        (b"123456789\xff", b"123456789\xef\xbf\xbd"),  # a tenth: just allowed
        (b"12345678\xff", None),
    ],
)
def test_what_counts_as_text(data, text):
    assert as_utf8(data) == text


@pytest.mark.parametrize(
    ("name", "written"),
    [("plain é", "plain é"), ("caf\udce9", "caf\\xe9"), ("\ud800x", "\\ud800x"), ("\ud800\udce9", "\\ud800\\udce9")],
)
def test_names_that_utf_8_cannot_write(name, written):
    assert printable(name) == written


def test_what_makes_documents_the_same():
    ids = np.array([1, 2], np.uint16)
    assert Document(b"x", "d", "a").content == Document(b"x", "other", "b").content == b"x"
    assert Document(b"", "d", "a", ids).content == Document(b"", "d", "b", ids.astype(np.int32)).content != b""


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a/b\nc", "a/b\\nc"), ("\x1b[31m", "\\x1b[31m"), ("all", "all (domain)"), ("é", "é"), ("a\tb", "a\\tb")],
)
def test_a_domain_is_one_line_of_a_table(name, shown):
    assert domain_name(name) == shown
