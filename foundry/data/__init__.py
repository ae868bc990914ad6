"""The data rooms, in the order that a document passes them: fetch → read → clean → tokens.

`text` has the functions that they share.

`schema` and `splits` are the contracts between the stages. Light to import.
"""
