"""The Mixture-of-Experts layer, in the order a token meets it: router -> dispatcher (plan, movement, exchange, experts,
return, combine) -> shared experts -> what is measured. Dispatchers with slots exchange their buffers
(`dispatchers/buffers.py`); those whose tokens cross as rows share `levels`, `delivery` and `places`.

A router decides and a dispatcher carries; measures are sums that leave the layer as values, and losses are ratios of
them. Axis letters, the same in every shape annotation of this package; small letters are one device's share:

    B  batch (sequences)               E, e  routed experts (a device's: those of its place on the axis `expert`)
    L  length of a sequence            A  what a router chooses among: the E experts and, behind them, null experts
    G  groups of tokens                K  choices of a token, best first; a choice is a token with a rank
    T  tokens of a group               C  capacity, the slots that an expert has in a group
    D  model dimension                 S  slots of a group, E * C
    F, f  hidden size of an expert     M  MoE layers (of a segment, or of the model)
       (a device's: its part along `tensor`)
"""
