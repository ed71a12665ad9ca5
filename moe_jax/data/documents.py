"""A document, which bytes count as text, and the removal of exact duplicates."""

import dataclasses
import hashlib
from collections.abc import Sequence

# A Latin-1 text in French or German is 3 to 8% accented letters; other encodings and binary formats lie far above.
MAX_REPLACED = 0.1


@dataclasses.dataclass(frozen=True)
class Document:
    """One text: valid UTF-8, never empty. `name` is unique within its source and the same on every machine."""

    text: bytes
    domain: str
    name: str


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


def deduplicate(sources: Sequence[Sequence[Document]]) -> tuple[list[list[Document]], int]:
    """Keeps the first of documents with the same bytes, over all sources; returns what is left and how many went."""
    seen: set[bytes] = set()
    kept: list[list[Document]] = []
    for documents in sources:
        kept.append([])
        for document in documents:
            digest = hashlib.sha256(document.text).digest()
            if digest not in seen:
                seen.add(digest)
                kept[-1].append(document)
    return kept, sum(map(len, sources)) - len(seen)
