"""The data rooms, in the order of a document's way: fetch → read → clean → tokens; `text` has the functions that they share.

`schema` and `splits` are the contracts between the stages. Light to import.
"""
