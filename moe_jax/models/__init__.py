"""Models: a decoder-only transformer as a list of scanned segments of layers."""
