"""Every kind of attention by its name in `attention.kind`.

Add one in a file of this package and name it in `ATTENTIONS`.

A kind is a module called with the stream, a `Mask`, and for cross-attention or decoding what to attend to or a cache;
its class also says what it checks, which sizes the mesh cuts, and what it costs.
"""

from moe_jax.models.attention.grouped_query import GroupedQueryAttention
from moe_jax.models.attention.latent import LatentAttention

ATTENTIONS: dict[str, type[GroupedQueryAttention] | type[LatentAttention]] = {
    "grouped_query": GroupedQueryAttention,
    "latent": LatentAttention,
}
