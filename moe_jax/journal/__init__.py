"""The record of a run: all that writes it (`metrics`, `workdir`, ...) and all that reads it again (`reading`)."""
