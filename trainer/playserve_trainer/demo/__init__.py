"""The demo: every stage from nothing to two played games, by the commands that anybody would type, and its page."""
