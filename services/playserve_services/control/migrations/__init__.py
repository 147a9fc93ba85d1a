"""Alembic's folder: `env` says how migrations run, `versions` holds them, oldest first by name."""
