"""Open Pixel2Play's formats: the schema of its recordings, its key names, and its action vocabulary."""
