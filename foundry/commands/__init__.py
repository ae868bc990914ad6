"""Subcommands of `foundry`, a module a topic: `add_to(add)` announces them. Heavy imports happen inside."""
