"""The Modelfile, with which Ollama makes a model of a GGUF file: the chat template in Go's language, and the settings.

Ollama does not use the template of the GGUF file, so this is the one place where it is written a second time; a test
renders both and compares them. The begin symbol is not in it: llama.cpp adds it.
"""

from __future__ import annotations

from foundry.config.corpus import CHAT_MARKERS
from foundry.config.sampling import ANSWERING

BEGIN, END = CHAT_MARKERS
TEMPLATE = f"{{{{ range .Messages }}}}{BEGIN}{{{{ .Role }}}}\n{{{{ .Content }}}}{END}\n{{{{ end }}}}{BEGIN}assistant\n"


def modelfile(gguf: str, context: int, licence: str | None) -> str:
    """The text of the Modelfile.

    Args:
        gguf: name of the file beside it.
        context: of the model, in tokens.
        licence: notice of the one licence of all texts; None if there are several.
    """
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{TEMPLATE}"""',
        f'PARAMETER stop "{END}"',
        'PARAMETER stop "</s>"',
        f"PARAMETER num_ctx {context}",
        f"PARAMETER temperature {ANSWERING.temperature}",
        f"PARAMETER top_p {ANSWERING.top_p}",
        "PARAMETER top_k 0",
        "PARAMETER repeat_penalty 1.0",
    ]
    if licence:
        lines.append('LICENSE """' + licence.replace('"""', "'''").rstrip() + '"""')
    return "\n".join(lines) + "\n"
