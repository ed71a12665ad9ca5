"""Weights from elsewhere and to elsewhere: Hugging Face folders, by one table of names a family of models."""
