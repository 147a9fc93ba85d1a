"""NetHack for everything that needs no torch: keys, screens, recorded games and where they are kept."""
