"""Tables, plots and statistics of runs and sweeps, read from their work directories. Nothing here uses JAX."""
