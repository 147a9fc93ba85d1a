"""Recordings in Open Pixel2Play's format: reading, writing, checking. PyAV comes with the extras that need it."""
