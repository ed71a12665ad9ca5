"""Models: a transformer as a list of scanned segments of layers.

Axis letters beside those of `moe_jax.moe`; small letters are one device's share:

    H  heads of queries              Q  positions of queries
    J  heads of keys and values      P  positions of keys
    R  query heads a key head, H / J V, v  vocabulary (a device's: its part along `tensor`)
    N  size of a head
"""
