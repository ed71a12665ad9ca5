"""Sweeps: many runs of one configuration with some fields varied, each in a work directory and a process of its own.

A point is the values of the swept fields. A cell is one run of the sweep: a point, trained with one seed.

design -> cells -> ledger (what is done) -> scheduler -> launchers -> run_cell, which trains. The report of the results
is `moe_jax.report.sweep`.
"""
