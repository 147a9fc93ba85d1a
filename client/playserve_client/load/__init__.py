"""An open-loop load generator: sessions come, play at their rate and go, whatever the server does."""
