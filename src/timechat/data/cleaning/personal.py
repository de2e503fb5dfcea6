"""Personal data in text: e-mail, phone, card, IBAN, IP and national numbers.

Patterns with checksums where the kind has one, so that an order number is not taken for a card.
Reported, replaced or dropped as the recipe says (`data.clean`); names and addresses of people are
not found by patterns and are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from timechat.conversation import Conversation, Message


@dataclass(frozen=True, slots=True)
class Match:
    """One find: its kind, where it stands, and its value without spacing."""

    kind: str
    start: int
    end: int
    value: str


def find_personal(text: str) -> list[Match]:
    """Everything personal in `text`, in order, none overlapping another."""
    found: list[Match] = []
    taken: list[tuple[int, int]] = []
    for kind in KINDS:
        if not kind.hint.search(text):
            continue
        for match in kind.pattern.finditer(text):
            start, end = match.span()
            value = _SPACING.sub("", match[0])
            if any(start < b and a < end for a, b in taken) or not kind.is_real(value):
                continue
            taken.append((start, end))
            found.append(Match(kind.name, start, end, value))
    return sorted(found, key=lambda match: match.start)


def replace_personal(row: Conversation) -> tuple[Conversation, dict[str, int]]:
    """The row with `[e-mail 1]` and the like in place of each find: the same value gets the same
    placeholder throughout. Also how many finds of each kind there were."""
    names: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}

    def name(match: Match) -> str:
        key = (match.kind, match.value.lower())
        if key not in names:
            number = 1 + sum(kind == match.kind for kind, _ in names)
            names[key] = f"[{match.kind} {number}]"
        counts[match.kind] = counts.get(match.kind, 0) + 1
        return names[key]

    def mend(text: str) -> str:
        parts: list[str] = []
        at = 0
        for match in find_personal(text):
            parts += [text[at : match.start], name(match)]
            at = match.end
        return "".join([*parts, text[at:]])

    messages = tuple(Message(m.role, mend(m.content), m.weight) for m in row.messages)
    rejected = mend(row.rejected)
    if not counts:
        return row, counts
    return replace(row, messages=messages, rejected=rejected), counts


def count_personal(row: Conversation) -> dict[str, int]:
    """How many finds of each kind the row holds."""
    counts: dict[str, int] = {}
    for text in (*(m.content for m in row.messages), row.rejected):
        for match in find_personal(text):
            counts[match.kind] = counts.get(match.kind, 0) + 1
    return counts


def luhn(value: str) -> bool:
    """The checksum of card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in value if c.isdigit()]
    doubled = (d * 2 - 9 * (d > 4) for d in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_card(value: str) -> bool:
    digits = value.replace("-", "")
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn(digits)


def _is_iban(value: str) -> bool:
    """The checksum of IBANs (ISO 13616)."""
    turned = value[4:] + value[:4]
    return 15 <= len(value) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _is_address(value: str) -> bool:
    """An address that leads to somebody: public, so no example and no home network."""
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False


def _is_phone(value: str) -> bool:
    digits = re.sub(r"\D", "", value)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def _is_ssn(value: str) -> bool:
    """A US social security number: the ranges that are never given out do not count."""
    area, group, serial = value.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_dni(value: str) -> bool:
    """A Spanish DNI or NIE: the letter is the number modulo 23."""
    number = value[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == value[-1]


def _is_insee(value: str) -> bool:
    """A French INSEE number: key = 97 − number modulo 97."""
    number = value[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(value[13:])


def _is_ahv(value: str) -> bool:
    """A Swiss AHV number: an EAN-13."""
    digits = [int(c) for c in value if c.isdigit()]
    return (sum(digits[0::2]) + 3 * sum(digits[1::2])) % 10 == 0


def _is_cpf(value: str) -> bool:
    """A Brazilian CPF with its two check digits."""
    digits = [int(c) for c in value if c.isdigit()]

    def check(length: int) -> int:
        total = sum(d * (length + 1 - i) for i, d in enumerate(digits[:length]))
        return 0 if total % 11 < 2 else 11 - total % 11

    return len(set(digits)) > 1 and digits[9] == check(9) and digits[10] == check(10)


_SPACING = re.compile(r"[ \u00a0]")
_DIGITS = re.compile(r"\d.{0,3}\d.{0,3}\d")
_NATIONAL = "national number"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A pattern, the check of what it matches, and what a text must hold for it to be tried."""

    name: str
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool]
    hint: re.Pattern[str]


def _kind(name: str, pattern: str, check: Callable[[str], bool], hint: str = "") -> _Kind:
    return _Kind(name, re.compile(pattern), check, re.compile(hint) if hint else _DIGITS)


# In order: what is certain goes first, so that a card is not half a phone number. Nor is the rest
# of a longer number one: a phone number that begins with 0 has no digits before it.
KINDS = (
    _kind("e-mail", r"[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
          bool, "@"),
    _kind("IBAN", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _is_iban),
    _kind("card", r"(?<![\d-])\d{4}[ -]?\d{4,6}[ -]?\d{4,5}(?:[ -]?\d{1,7})?(?![\d-])", _is_card),
    _kind(_NATIONAL, r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])", _is_ssn),
    _kind(_NATIONAL, r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b", bool),
    _kind(_NATIONAL, r"\b(?:\d{8}|[XYZ]\d{7})[A-HJ-NP-TV-Z]\b", _is_dni),
    _kind(_NATIONAL, r"\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b",
          _is_insee),
    _kind(_NATIONAL, r"\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b", bool),
    _kind(_NATIONAL, r"\b756\.\d{4}\.\d{4}\.\d{2}\b", _is_ahv),
    _kind(_NATIONAL, r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b", _is_cpf),
    _kind("IP address", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", _is_address),
    _kind("IP address", r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])",
          _is_address, ":[0-9A-Fa-f]*:"),
    _kind("phone", r"(?<![\w+])(?:\+|(?<!\d[ -])00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\w)",
          _is_phone),
    _kind("phone", r"(?<![\w-])\(?[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}(?![\w-])", _is_phone),
    _kind("phone", r"(?<![\w.-])(?<!\d )0\d{2,4}[ /-]\d{3,8}(?:[ -]\d{2,5}){0,3}(?![\w-])",
          _is_phone),
)  # fmt: skip
