"""What the rooms above ask of a file system: locks that die with their holder, and digests that tell of damage."""
