import pytest

from moe_jax.data.documents import Document, as_utf8, deduplicate


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


def test_the_first_of_equal_documents_stays():
    a, b, c = Document(b"x", "d", "a"), Document(b"y", "d", "b"), Document(b"x", "other", "c")
    assert deduplicate([[a, b], [c, a]]) == ([[a, b], []], 2)
