"""A project as a whole, for the commands: what its parameters decide, where its numbers come from, which model is champion.

These modules join rooms; no stage but export depends on them, which registers what it wrote.
"""
