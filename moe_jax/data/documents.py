"""A document, and which bytes count as text."""

import dataclasses
import re

import numpy as np
from jaxtyping import Integer

# A Latin-1 text in French or German is 3 to 8% accented letters; other encodings and binary formats lie far above.
MAX_REPLACED = 0.1
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclasses.dataclass(frozen=True)
class Document:
    """One text: valid UTF-8, never empty. `name` is unique within its source and the same on every machine.

    A document of a source that was tokenized elsewhere has `ids`, without an end of document, and its text is empty.
    """

    text: bytes
    domain: str
    name: str
    ids: Integer[np.ndarray, " tokens"] | None = dataclasses.field(default=None, compare=False)
    prompt: bytes = b""  # UTF-8 that comes before the text, is read by the model and is no target

    @property
    def content(self) -> bytes:
        """What makes two documents the same: the text with its prompt, or the bytes of the ids."""
        if self.ids is not None:
            return np.ascontiguousarray(self.ids, np.uint32).tobytes()
        return b"\0".join((self.prompt, self.text)) if self.prompt else self.text  # no text has a NUL


def as_utf8(data: bytes) -> bytes | None:
    """The text of a file as UTF-8, or None where the file is not text.

    UTF-8 is returned as it is. Elsewhere bytes that cannot be decoded become U+FFFD, as long as these are at most
    `MAX_REPLACED` of the characters. Empty files, files with a NUL byte and files with more replacements are no text.
    """
    if not data or b"\0" in data:
        return None
    try:
        data.decode()
        return data
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        return text.encode() if text.count("\ufffd") <= MAX_REPLACED * len(text) else None


def printable(name: str) -> str:
    r"""The name with what UTF-8 cannot write (bytes of a file name, lone surrogates) spelled out, as in "caf\xe9"."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace") if _escaped(name) else _plain(name)


def domain_name(name: str) -> str:
    r"""The name of a domain as tables show it: on one line (a new line is "\n"), and not "all", which is the sum."""
    line = _CONTROLS.sub(lambda sign: repr(sign[0])[1:-1], printable(name))
    return "all (domain)" if line == "all" else line


def _escaped(name: str) -> bool:
    """Whether the only surrogates are those by which Python stands for bytes of a file name."""
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in name)


def _plain(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
