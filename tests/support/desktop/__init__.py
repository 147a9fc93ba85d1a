"""Desktops for tests: X servers of their own, a person's hands through RFB, and windows that say what reached them."""
