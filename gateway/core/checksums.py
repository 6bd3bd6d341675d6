"""Arithmetic that tells a real number from one that only looks like it. Every check is given what a pattern has found.

A check answers with how many of the characters, from the first on, are the thing; 0 if none are.
"""

import ipaddress
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Final

# Lengths by ISO 13616, as registered; a country without IBANs is not here.
IBAN_LENGTHS: Final[Mapping[str, int]] = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18,
    "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23,
    "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28,
    "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}
# First digits of a card number, and how long such numbers are. The longest beginning decides.
_CARD_LENGTHS: Final[Mapping[str, range]] = {
    "2": range(16, 17), "5": range(12, 20), "6": range(13, 20), "30": range(14, 20), "34": range(15, 16), "35": range(16, 20),
    "36": range(14, 20), "37": range(15, 16), "38": range(14, 20), "39": range(14, 20), "4": range(13, 20, 3),
    "51": range(16, 17), "52": range(16, 17), "53": range(16, 17), "54": range(16, 17), "55": range(16, 17),
}
_NO_ADDRESS: Final = frozenset({"png", "jpg", "jpeg", "gif", "webp", "svg", "avif", "ico", "css", "js", "ts", "json", "html", "pdf"})
_MONTHS: Final = frozenset({"jan", "feb", "mar", "apr", "may", "mai", "jun", "jul", "aug", "sep", "oct", "okt", "nov", "dec", "dez"})
_DATED: Final = re.compile(r"\d{2}([./-])\d{2}\1\d{4}")
_DOUBLED: Final = bytes.maketrans(b"0123456789", b"0246813579")
_NO_DIGIT: Final = re.compile(r"\D+")
_TEMPLATED: Final = re.compile(r"[$%{<\[(]|[\w.]+[(\[]|[x*.#_-]+$|.*(?:your|example|placeholder|change[_-]?me|redacted|dummy)"
                              r"|(?:required|invalid|incorrect|optional|password|undefined)$", re.IGNORECASE)
_NAMES: Final = re.compile(r"[a-z]+(?:[-_./:][a-z]+)+|[0-9]{4}-[0-9]{2}-[0-9]{2}.*", re.IGNORECASE)


def digits_of(text: str) -> str:
    """The digits of a text, those of full width too, as ASCII."""
    return _NO_DIGIT.sub("", text if text.isascii() else unicodedata.normalize("NFKC", text))


def luhn(digits: str) -> bool:
    """The check digit of cards, ISO/IEC 7812-1. Of ASCII digits only."""
    data = digits.encode()
    return (sum(data[-1::-2]) + sum(data[-2::-2].translate(_DOUBLED)) - len(data) * ord("0")) % 10 == 0


def mod97(letters: str) -> int:
    """The remainder of ISO 7064 MOD 97-10 over capital letters and digits, as in ISO 13616: 1 in a valid IBAN."""
    return int("".join(str(int(letter, 36)) for letter in letters)) % 97


def entropy(text: str) -> float:
    """Bits a character, by the frequencies of the text's own characters: 0 for `aaaa`, 4 for sixteen different ones."""
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values())


def card(text: str) -> int:
    """A payment card: the length of its issuer, and Luhn."""
    digits = digits_of(text)
    lengths = _CARD_LENGTHS.get(digits[:2]) or _CARD_LENGTHS.get(digits[:1], range(0))
    return len(text) if len(digits) in lengths and luhn(digits) else 0


def iban(text: str) -> int:
    """An IBAN: what follows its country's length is no part of it."""
    length = IBAN_LENGTHS.get(text[:2].upper(), 0)
    taken, end = 0, 0
    while taken < length and end < len(text):
        taken += text[end].isalnum()
        end += 1
    letters = "".join(letter for letter in text[:end] if letter.isalnum()).upper()
    whole = length and taken == length and not text[end:end + 1].isalnum()
    return end if whole and mod97(letters[4:] + letters[:4]) == 1 else 0


def us_ssn(text: str) -> int:
    """A United States social security number that can have been given out."""
    digits = digits_of(text)
    given = digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"
    return len(text) if given else 0


def phone(text: str) -> int:
    """A telephone number: as many digits as they have, and neither a date nor an address of a machine.

    Of two numbers with one blank between them the second is left for the next search.
    """
    most = 15 if unicodedata.normalize("NFKC", text[0]) == "+" else 12
    end = count = 0
    for group in re.finditer(r"\d+", text):
        if count + len(group[0]) > most:
            break
        count, end = count + len(group[0]), group.end()
    likely = count >= 9 and len(set(digits_of(text[:end]))) > 1 and text[:end].count(".") != 3 and not _DATED.match(text)
    return end if likely else 0


def date(text: str) -> int:
    """A day, in whatever order it is written."""
    numbers = sorted(int(part) for part in re.findall(r"\d+", text))
    words = re.findall(r"[a-z]{3,}", text.lower())
    month = not words or words[0][:3] in _MONTHS
    day = 1 <= numbers[0] <= (31 if words else 12) and (words or 1 <= numbers[1] <= 31)
    return len(text) if month and day and (numbers[-1] <= 99 or 1900 <= numbers[-1] <= 2100) else 0


def email(text: str) -> int:
    """An address, and neither a picture (`icon@2x.png`) nor a Git remote (`git@host.example:project`)."""
    return 0 if text.startswith("git@") or text.rpartition(".")[2].lower() in _NO_ADDRESS else len(text)


def public_ip(text: str) -> int:
    """An address that can be reached from everywhere."""
    try:
        return len(text) if ipaddress.ip_address(text).is_global else 0
    except ValueError:
        return 0


def random_key(text: str) -> int:
    """A key that a machine made: somewhere 16 letters and digits in a row, mixed, and no words."""
    runs = re.split(r"[^A-Za-z0-9]", text)
    longest = max(runs, key=len)
    mixed = any(letter.isdecimal() for letter in longest) and any(letter.isalpha() for letter in longest)
    return len(text) if len(longest) >= 16 and mixed and entropy(longest) > 3 else 0


def credential(text: str) -> int:
    """What stands where a credential belongs, and no place for one to be put in. Of `user:password` the password tells."""
    return 0 if _TEMPLATED.match(text.rpartition(":")[2]) else len(text)


def secret_value(text: str) -> int:
    """What is assigned to a name like `password`: no template, no code, no other name, no date."""
    stands_for = _TEMPLATED.match(text) or _NAMES.fullmatch(text)
    return len(text) if len(text) >= 8 and not stands_for and entropy(text) >= 2.5 else 0
