"""The subcommands of `foundry`, one module per topic, each with its own `add_to(subparsers)`.

Heavy imports are inside the functions, so that `foundry --help` is quick.
"""
