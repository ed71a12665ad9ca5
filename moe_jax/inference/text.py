"""From text to ids and back, one token at a time."""

import dataclasses
from collections.abc import Callable, Sequence

from moe_jax.config.rules import ConfigError

LOST = "\ufffd"  # what bytes that are no character yet are decoded to


@dataclasses.dataclass(frozen=True)
class Text:
    """A model's tokenizer, as far as decoding needs it."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    stop_tokens: frozenset[int]  # those that end a text

    def reader(self) -> "Reader":
        """Of one answer."""
        return Reader(self.decode)


class Reader:
    """The text of ids that come one by one. Bytes of a character that is not whole yet are held back."""

    WINDOW = 8  # tokens that are decoded again with each new one: a character and the space before a word end in fewer

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode, self._text = decode, ""
        self._recent: list[int] = []
        self._said = 0  # tokens of `_recent` whose text is in `_text`

    def add(self, token: int) -> str:
        """All of the text so far."""
        self._recent.append(token)
        before, now = self._decode(self._recent[: self._said]), self._decode(self._recent)
        if not now.endswith(LOST):
            self._text += now[len(before) :]
            self._said = len(self._recent)
            if self._said > 2 * self.WINDOW:
                self._recent = self._recent[-self.WINDOW :]
                self._said = len(self._recent)
        return self._text

    def end(self) -> str:
        """All of it, with what no character came of."""
        before, now = self._decode(self._recent[: self._said]), self._decode(self._recent)
        return self._text + now[len(before) :]


def check_writable(name: str, text: str) -> None:
    """Raises ConfigError for lone surrogates, which JSON and odd bytes of a command line can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} has characters that UTF-8 cannot write (lone surrogates): remove them") from None
