"""Optimisers and learning-rate schedules, all of them optax's."""
