"""The Doom recipe and its demo: record, train, publish, serve, measure, play at a desktop, film, and show it."""
