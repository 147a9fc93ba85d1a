"""Doom, in ViZDoom: scenarios, goals, the game's process, scripted experts and the recorder of P2P recordings."""
