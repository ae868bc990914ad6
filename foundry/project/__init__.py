"""The project as a whole, for the commands: its parameters, where its numbers come from, which model is champion.

These modules join rooms. No stage depends on them except export, which registers what it wrote.
"""
