"""What a GPU answers within some minutes: the tests marked `cuda`, and every measured claim about one.

    python -m benchmarks.gpu [--only tests train decode evaluate] [--device cpu --tiny]

`__main__` runs the parts, `record` is the report that they write, `child` the processes of the sides and their turns,
`page` the tables of docs/*/gpu.md. Needs torch 2.10 or newer, numpy, pyarrow, pydantic, pyyaml, safetensors,
sentencepiece, psutil, tqdm and pytest; a side that needs transformers says so where it is missing.
"""
