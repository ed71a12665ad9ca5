"""What a run writes about itself and others read: metrics, event files, pictures, the work directory."""
