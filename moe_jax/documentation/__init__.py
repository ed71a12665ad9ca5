"""What is documented from the registries, and what is measured for it."""
