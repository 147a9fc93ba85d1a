"""Handing sessions from one replica to another, memory and all, while their games go on."""
