"""Scripted experts that read the emulator's memory, for recordings and for comparison."""
