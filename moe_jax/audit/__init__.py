"""What a run costs on hardware that is not there: devices to compile for, and how to read the compiled step."""
