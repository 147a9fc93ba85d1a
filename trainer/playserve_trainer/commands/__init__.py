"""Subcommands of the console command `playserve`, one module each."""
