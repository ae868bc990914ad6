"""Personal data is replaced by tokens: e-mail addresses, telephone numbers, public IP addresses, payment cards and
Chinese ID numbers.

Checksums are verified (Luhn for cards, ISO 7064 mod 11-2 for ID numbers), so that other long numbers are kept. The same
text gives the same result everywhere: there is no state, and there are no counters in the tokens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import date

TOKENS = {"email": "[EMAIL]", "cn_id": "[ID]", "card": "[CARD]", "ip": "[IP]", "phone": "[PHONE]"}

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_PATTERNS = {
    "email": re.compile(
        r"(?<![\w.+%-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?"
        r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-])",
        re.ASCII,
    ),
    "cn_id": re.compile(r"(?<![0-9A-Za-z])[1-8]\d{5}(?:19|20)\d{9}[0-9Xx](?![0-9A-Za-z])", re.ASCII),
    "card": re.compile(r"(?<![\w.,-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])", re.ASCII),
    "ip": re.compile(
        rf"(?<![\w.:-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-])(?!\.\d)"
        r"|(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])",
        re.ASCII,
    ),
    "phone": re.compile(
        r"(?<![\w+.,-])(?:"
        r"\+\d{1,3}(?:[ .-]?(?:\(\d{1,4}\)|\d{1,4})){2,6}"  # +44 20 7946 0018
        r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0199
        r"|1[3-9]\d(?:[ -]?\d{4}){2}"  # 138 0013 8000
        r"|\(?0\d{2,3}(?:\) ?|[ -])[2-8]\d{6,7}"  # 010-62345678
        r")(?![\w-])(?!\.\d)",
        re.ASCII,  # so that a number may be next to a Chinese character
    ),
}
# What every address contains. A pattern that begins with one literal character is searched for much faster.
_IP_4 = re.compile(r"\.(?<=[0-9].)[0-9]{1,3}\.[0-9]")
_IP_6 = re.compile(r":(?<=[0-9A-Fa-f]:)[0-9A-Fa-f]{0,4}:")
_DIGITS = b"0123456789"
_MANY_DIGITS = re.compile(r"[0-9](?:[ .()-]{0,2}[0-9]){6}")


def _luhn(found: str) -> bool:
    digits = [int(c) for c in found if c.isdigit()]
    doubled = (2 * d - 9 * (d > 4) for d in digits[-2::-2])
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _cn_id(found: str) -> bool:
    try:
        date(int(found[6:10]), int(found[10:12]), int(found[12:14]))
    except ValueError:
        return False
    weighted = sum(int(d) * 2 ** (17 - i) for i, d in enumerate(found[:17]))
    return "10X98765432"[weighted % 11] == found[17].upper()


def _public_ip(found: str) -> bool:
    if ":" in found and sum(map(bool, found.split(":"))) < 4:  # a::b, 12:30:45
        return False
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _phone(found: str) -> bool:
    return 8 <= sum(c.isdigit() for c in found) <= 15


_CHECKS: dict[str, Callable[[str], bool]] = {"cn_id": _cn_id, "card": _luhn, "ip": _public_ip, "phone": _phone}


def scrub(text: str, kinds: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Replaces personal data.

    Args:
        kinds: keys of `TOKENS`.

    Returns:
        (text, {kind: how many were replaced}).
    """
    found: dict[str, int] = {}
    data = text.encode("utf-8", "surrogatepass")
    digits = len(data) - len(data.translate(None, _DIGITS))
    wanted: set[str] = set()
    if "@" in text:
        wanted.add("email")
    if _IP_4.search(text) or _IP_6.search(text):
        wanted.add("ip")
    if digits >= 7 and _MANY_DIGITS.search(text):
        wanted.update(("cn_id", "card", "phone"))
    for kind in (kind for kind in TOKENS if kind in wanted and kind in kinds):
        check, token, count = _CHECKS.get(kind), TOKENS[kind], 0

        def replace(m: re.Match[str], check: Callable[[str], bool] | None = check, token: str = token) -> str:
            nonlocal count
            if check and not check(m[0]):
                return m[0]
            count += 1
            return token

        text = _PATTERNS[kind].sub(replace, text)
        if count:
            found[kind] = count
    return text, found
