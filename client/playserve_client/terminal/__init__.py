"""Recorded terminal games for people: read ttyrecs, play them in a terminal, show them on a page."""
