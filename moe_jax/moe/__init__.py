"""The Mixture-of-Experts layer, in the order a token meets it.

router -> plan -> dispatch -> (exchange) -> experts -> (exchange) -> combine, and beside them what is measured:
stats (sums that leave as values) and balance (the auxiliary losses computed from them).
"""
