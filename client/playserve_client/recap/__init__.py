"""Serves clients of Open Pixel2Play ("Recap"), unmodified: each connection plays one session at our server."""
