"""Every dispatcher by its name in a config.

Add one by writing it in a file of this package, and naming it in `DISPATCHERS` and in `dispatchers` of the routers
whose decisions it can carry.
"""

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.dispatchers.chosen import Chosen
from moe_jax.moe.dispatchers.dispatcher import Dispatcher
from moe_jax.moe.dispatchers.mixed import Mixed
from moe_jax.moe.dispatchers.slots import Capacity, Einsum
from moe_jax.moe.dispatchers.sorted import Dropless
from moe_jax.moe.routers import ROUTERS

DISPATCHERS: dict[str, type[Dispatcher]] = {
    "einsum": Einsum,
    "capacity": Capacity,
    "dropless": Dropless,
    "soft": Mixed,
    "chosen": Chosen,
}


def dispatcher_of(moe: MoEConfig) -> Dispatcher:
    """The dispatcher of a layer with these settings."""
    return DISPATCHERS[dispatcher_name(moe)](moe)


def dispatcher_name(moe: MoEConfig) -> str:
    """The name of the dispatcher that `moe.dispatcher` means for the layer's router."""
    return ROUTERS[moe.router].dispatchers[0] if moe.dispatcher == "auto" else moe.dispatcher
