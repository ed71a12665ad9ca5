"""What a run would cost on hardware that is not there: devices to compile for, and the compiled step."""
