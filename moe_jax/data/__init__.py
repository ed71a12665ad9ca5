"""Text: sources -> documents -> split -> tokens -> rows -> batches."""
