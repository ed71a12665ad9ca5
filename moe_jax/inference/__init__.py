"""Decoding: text out of a trained or imported model, and what a token of it costs."""
