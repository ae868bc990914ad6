"""Texts on which tokenizers differ, each for a reason that was seen: the token ids of an export are compared on all of them.

U+2581 is not among them: SentencePiece spells the space with it and cleaning replaces it.
"""

HOSTILE = (
    # white space: collapsed, stripped, or joined with a dummy prefix by other settings
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  b", " leading", "trailing ", "\t", "\ttab\tand\ttab", "\n", "\n\n\nlines\n",
    "\r\n", "mixed \t\n \r end", "\u00a0no-break\u00a0", "\u2003em\u3000wide", "\u2028\u2029\x85",
    # scripts and byte fallback
    "日本語のテキスト", "简体中文，标点。", "繁體中文「引號」", "한국어 텍스트", "مرحبا بالعالم", "שלום עולם", "Привет, мир", "ไทย हिन्दी",
    "🙂", "👩‍👩‍👧‍👦 family", "🇩🇪🇨🇳", "👍🏽", "\U0010ffff\U0001f9ff", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    # what a normaliser would rewrite
    "e\u0301 combining", "é composed", "a\u0323\u0307", "½ ﬁ Ａ①ﷺ™", "\u200bzero\u200dwidth\u2060", "\ufeffbom", "Straße ẞ İı",
    # control characters and U+FFFD itself
    "a\x00b\x01\x1b[0m\x7f", "\ufffd",
    # markers typed as text must stay text
    "<s>", "</s><unk>", "<|im_start|>user\nhi<|im_end|>", "<|reserved_0|>", "<0x41>", "<0x0A>", "<|im_start|><|im_start|>", "< s >",
    # numbers, code, long runs
    "1234567890 3.14159 1,000", "0" * 65, "٣٤٥ ４５", "x" * 400, " " * 70, "don't can't won't", "https://example.org/a?b=c#d",
    "def f(x):\n    return x ** 2\n", '{"a": [1, 2.5e-3, null]}', "ALL CAPS camelCase snake_case", "....!!!???---___",
)  # fmt: skip
