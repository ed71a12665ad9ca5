"""Devices and what moves between them: the mesh, the rule table for weights, the exchange of tokens."""
