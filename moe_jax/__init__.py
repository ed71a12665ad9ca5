"""Mixture-of-Experts research in JAX.

Axis letters, the same everywhere, in shape annotations (`Float[Array, "G T D"]`) and in text:

    B  batch (sequences)            E  experts
    L  length of a sequence         K  choices, experts a token
    T  tokens of a group            C  capacity, slots an expert has in a group
    G  groups                       H  heads
    D  model dimension              N  size of a head
    F  hidden size of a             V  vocabulary
       feed-forward or an expert    M  MoE layers of the model
"""
