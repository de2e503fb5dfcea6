"""Personal data by its checksums, and the language of rows."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from timechat.conversation import Conversation, Message
from timechat.data.cleaning.language import UNKNOWN, check_languages, language_of
from timechat.data.cleaning.personal import find_personal, luhn, replace_personal
from timechat.errors import DataError


def kinds(text: str) -> list[str]:
    return [match.kind for match in find_personal(text)]


def talk(question: str, answer: str = "ok") -> Conversation:
    return Conversation("x", (Message("user", question), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("my card is 4111 1111 1111 1111.", "card"),
        ("378282246310005", "card"),
        ("5555-5555-5555-4444", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN"),
        ("GB82WEST12345698765432", "IBAN"),
        ("write to a.b+c@mail.corp.com", "e-mail"),
        ("from 8.8.8.8 came", "IP address"),
        ("ssn 219-09-9999", "national number"),
        ("dni 12345678Z", "national number"),
        ("cpf 529.982.247-25", "national number"),
        ("ahv 756.9217.0769.85", "national number"),
        ("call +41 44 668 18 00", "phone"),
        ("call (415) 555-2671", "phone"),
    ],
)
def test_what_is_personal_is_found_as_its_kind(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112",  # a digit off
        "DE89 3704 0044 0532 0130 01",
        "192.168.0.1 at home and 127.0.0.1 and 999.1.1.1",
        "dni 12345678A",
        "cpf 529.982.247-24",
        "ssn 000-09-9999",
        "in 2024 it cost 1,250,000.00",
        "0000 0000 0000 0000",
    ],
)
def test_numbers_whose_checksum_is_wrong_and_private_addresses_are_not(text: str) -> None:
    assert kinds(text) == []


@given(st.integers(min_value=10**14, max_value=10**15 - 1), st.integers(0, 14), st.integers(1, 9))
def test_the_card_checksum_notices_every_wrong_digit(number: int, place: int, off: int) -> None:
    valid = [f"{number}{check}" for check in range(10) if luhn(f"{number}{check}")]
    assume(len(set(str(number))) > 1)
    assert len(valid) == 1
    digits = [int(digit) for digit in valid[0]]
    digits[place] = (digits[place] + off) % 10
    assert not luhn("".join(map(str, digits)))


@given(st.integers(min_value=0, max_value=10**18 - 1), st.integers(0, 17), st.integers(1, 9))
def test_the_iban_checksum_notices_every_wrong_digit(number: int, place: int, off: int) -> None:
    account = f"{number:018d}"
    key = 98 - int(f"{account}131400") % 97
    assert "IBAN" in kinds(f"DE{key:02d}{account}")
    digits = [int(digit) for digit in account]
    digits[place] = (digits[place] + off) % 10
    assert "IBAN" not in kinds(f"DE{key:02d}{''.join(map(str, digits))}")


def test_one_value_gets_one_placeholder_whatever_its_spacing_and_case() -> None:
    row = talk("4111 1111 1111 1111 or A@corp.com?", "4111111111111111 and a@corp.com, b@corp.com.")
    replaced, counts = replace_personal(row)
    assert [m.content for m in replaced.messages] == [
        "[card 1] or [e-mail 1]?",
        "[card 1] and [e-mail 1], [e-mail 2].",
    ]
    assert counts == {"card": 2, "e-mail": 3}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("When does the museum in the old town open on Sundays?", "en"),
        ("Wann öffnet das Museum in der alten Stadt am Sonntag?", "de"),
        ("¿Cuándo abre el museo de la ciudad vieja los domingos?", "es"),
        ("博物馆星期天什么时候开门？我想带我的孩子们一起去参观一下古城里的展览。", "zh"),
        ("Hi there", UNKNOWN),
        ("42 + 17 = 59 (12, 13, 14, 15)", UNKNOWN),
    ],
)
def test_a_language_is_told_where_there_are_letters_enough(text: str, code: str) -> None:
    assert language_of(talk(text, "")) == code


def test_a_language_that_nothing_could_be_in_is_refused() -> None:
    check_languages(("en", "de"))
    with pytest.raises(DataError, match="'english' is no language code"):
        check_languages(("english",))
