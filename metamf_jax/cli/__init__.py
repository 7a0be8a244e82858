"""The console command ``metamf``: flags in `command_line`, a file for each step."""

from metamf_jax.cli.command_line import main

__all__ = ["main"]
