"""Which keys a query may see."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Positions and documents of queries and keys. The queries are consecutive positions, from `start` on."""

    start: Int[Array, ""] | Int[Array, "B"] | int = 0  # position of the first query, of each sequence or of all
    key_positions: Int[Array, "P"] | Int[Array, "B P"] | None = None  # None: 0, 1, 2 ...
    count: Int[Array, "B"] | None = None  # queries of each sequence that are there, the first ones; None: all
    query_documents: Int[Array, "B Q"] | None = None  # with the next: only keys of the query's document are seen
    key_documents: Int[Array, "B P"] | None = None
    reach: int = dataclasses.field(
        default=0, metadata=STATIC
    )  # no query is at this position of a cache or later; 0: any
    causal: bool = dataclasses.field(default=True, metadata=STATIC)  # keys at later positions are not seen
    window: int = dataclasses.field(default=0, metadata=STATIC)  # keys this far back or more are not; 0: all are

    def query_positions(self, length: int) -> Int[Array, "Q"] | Int[Array, "B Q"]:
        """The positions of `length` queries."""
        return jnp.asarray(self.start)[..., None] + jnp.arange(length)

    def seen(self, queries: int, keys: int) -> Bool[Array, "Q P"] | Bool[Array, "B Q P"] | None:
        """Whether each query sees each key, in the fewest dimensions that say it. None: all see all."""
        conditions = []
        if self.causal or self.window:
            own = self.query_positions(queries)[..., :, None]
            other = (jnp.arange(keys) if self.key_positions is None else self.key_positions)[..., None, :]
            conditions += [own >= other] if self.causal else []
            conditions += [own - other < self.window] if self.window else []
        if self.query_documents is not None and self.key_documents is not None:
            conditions.append(self.query_documents[:, :, None] == self.key_documents[:, None, :])
        if not conditions:
            return None
        seen = conditions[0]
        for condition in conditions[1:]:
            seen = seen & condition
        return seen
