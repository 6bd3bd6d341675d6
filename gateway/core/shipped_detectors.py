"""What the shipped detectors look for, as one literal table: a pattern each, and arithmetic that tells the real thing from its like.

RE2 has no look-around, so what has to stand beside a value is matched too and the value is captured. Neighbours are judged as
ASCII: a number right beside a Chinese character is found, one inside a word is not. Digits of full width, and the spaces and
hyphens that typesetting makes of plain ones, count as what they look like.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gateway.core import checksums

_WIDE: Final = r"\x{ff10}-\x{ff19}"
_D: Final = f"[0-9{_WIDE}]"
_SPACE: Final = r" \x{a0}\x{2007}\x{202f}"
_HYPHEN: Final = r"\x{2010}-\x{2015}\x{ff0d}-"
_SEPARATOR: Final = f"[{_SPACE}{_HYPHEN}]"
_COLON: Final = r":\x{ff1a}"
_PLUS: Final = r"+\x{ff0b}"
# A number is none inside a word, or behind a decimal point; a telephone number is none behind a digit and a hyphen either.
_BEFORE: Final = f"(?:^|[^0-9A-Za-z_.{_WIDE}]|(?:^|[^0-9{_WIDE}])[.])"
_BEFORE_PHONE: Final = f"(?:^|[^0-9A-Za-z_.{_WIDE}{_HYPHEN}]|(?:^|[^0-9{_WIDE}])[.{_HYPHEN}])"
_AFTER: Final = f"(?:$|[^0-9A-Za-z_.{_WIDE}]|[.](?:$|[^0-9{_WIDE}]))"

_2_TO_6: Final = r"[2-6\x{ff12}-\x{ff16}]"
_CARD: Final = (
    f"({_2_TO_6}{_D}{{3}}(?:{_SEPARATOR}{_D}{{4}}){{3}}(?:{_SEPARATOR}{_D}{{3}})?"
    rf"|[3\x{{ff13}}]{_D}{{3}}{_SEPARATOR}{_D}{{6}}{_SEPARATOR}{_D}{{4,5}}|{_2_TO_6}{_D}{{12,18}})")

_BETWEEN: Final = f"[{_SPACE}.()/{_HYPHEN}]"
_PHONE: Final = (
    rf"([{_PLUS}][1-9\x{{ff11}}-\x{{ff19}}](?:{_BETWEEN}{{0,2}}{_D}){{8,14}}"  # E.164, however it is grouped
    f"|(?:1{_BETWEEN})?(?:[(][2-9]{_D}{_D}[)] ?|[2-9]{_D}{_D}{_BETWEEN})[2-9]{_D}{_D}{_BETWEEN}{_D}{{4}}"  # North America
    f"|[(]0[1-9]{_D}{{1,4}}[)] ?{_D}{{2,8}}(?:{_SEPARATOR}{_D}{{2,8}}){{0,3}}"  # a trunk 0
    f"|0[1-9]{_D}{{0,4}}(?:{_BETWEEN}{_D}{{2,8}}){{1,5}}"
    f"|1[3-9]{_D}(?:{_SEPARATOR}{_D}{{4}}){{2}})")  # Chinese mobiles
_PHONE_NAMED: Final = (  # whatever its form
    r"(?i:(?:\b(?:tele)?phone|\btel|\bmobile|\bcell|\bfax|\bwhatsapp|电话|手机|電話|携帯)(?:[ _-]?(?:no|nr|number|号码|番号))?)"
    rf"""[.'"]{{0,2}}[ #={_COLON}]{{1,3}}['"]?([{_PLUS}(]?{_D}(?:{_BETWEEN}{{0,2}}{_D}){{6,14}})""")

_BIRTH: Final = (
    r"(?i:date[ _-]?of[ _-]?birth|birth[ _-]?(?:date|day)|\bborn(?: on)?|\bd[.]?o[.]?b\b[.]?|geburtsdatum|geboren(?: am)?"
    rf"""|date de naissance|\bnée? le|fecha de nacimiento|出生日期|生年月日)(?: is| was)?['" \t=({_COLON}]{{0,5}}""")
_DATE: Final = (
    f"({_D}{{1,4}}[./-]{_D}{{1,2}}[./-]{_D}{{1,4}}|{_D}{{4}}年{_D}{{1,2}}月{_D}{{1,2}}日"
    "|[0-9]{1,2}(?:st|nd|rd|th|[.])? [A-Za-z]{3,9}[.,]{0,2} [0-9]{4}|[A-Za-z]{3,9}[.]? [0-9]{1,2}(?:st|nd|rd|th)?,? [0-9]{4})")

_KEY_LINE: Final = r"[0-9A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# Ends where two hyphens stand, so that no text is looked through twice.
_KEY_TEXT: Final = r"(?:[\t\n\r -,.-~]|-[\t\n\r -,.-~])*?"
_QUOTES: Final = r"""['"\\]{0,3}"""
_ASSIGNED: Final = rf"{_QUOTES}[ \t]{{0,4}}(?::=|=>|[={_COLON}])[ \t]{{0,4}}"
_KEYWORD: Final = (
    "(?i:pass(?:word|wd|phrase)|pwd|secret|token|credential|(?:api|access|secret|private|account|auth|encryption)[ _-]?key)")
# Printable ASCII but for blanks, quotes and what ends a value in a list: , ; < > \ ` { | }
_BARE: Final = r"[!#-&(-+\--:=?-\[\]-_a-z~]{0,64}"
_IN_URL: Final = r"!#$%&(-.0-9;=?A-Z\[-~"


class Kind(NamedTuple):
    """One detector. The group of `source` that takes part is what counts; `check` and `longest` as in `PatternDetector`."""

    name: str
    source: str
    check: Callable[[str], int] = len
    longest: int | None = None


# By the group that rules name them by; those of "" have to be named themselves.
KINDS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "pii": (
        Kind("email", r"(?:^|[^0-9A-Za-z._%+-])([0-9A-Za-z_%+][0-9A-Za-z._%+'-]{0,63}@(?:[0-9A-Za-z-]{1,63}[.]){1,5}[A-Za-z]{2,24})",
             checksums.email),
        Kind("phone", f"(?:{_BEFORE_PHONE}{_PHONE}|{_PHONE_NAMED}){_AFTER}", checksums.phone),
        Kind("credit_card", f"{_BEFORE}{_CARD}{_AFTER}", checksums.card),
        Kind("iban", r"\b([A-Za-z]{2}[0-9]{2}(?: ?[0-9A-Za-z]{4}){2,7}(?: ?[0-9A-Za-z]{1,4})?)", checksums.iban),
        Kind("us_ssn", f"(?:^|[^0-9A-Za-z_.{_WIDE}{_HYPHEN}])({_D}{{3}}[{_HYPHEN}]{_D}{{2}}[{_HYPHEN}]{_D}{{4}})"
                       f"(?:$|[^0-9A-Za-z_{_WIDE}{_HYPHEN}])", checksums.us_ssn),
        Kind("date_of_birth", f"{_BIRTH}{_DATE}", checksums.date),
    ),
    "secrets": (
        Kind("private_key", rf"(-----BEGIN {_KEY_LINE}(?:{_KEY_TEXT}-----END {_KEY_LINE}|(?:(?:\s|\\[nr]){{0,8}}[0-9A-Za-z+/=]{{16,}})*))",
             longest=16_384),
        Kind("aws_access_key", r"\b((?:A3T[0-9A-Z]|AKIA|ASIA|ABIA|ACCA)[2-7A-Z]{16})\b"),
        Kind("github_token", r"\b(gh[pousr]_[0-9A-Za-z]{36,251}|github_pat_[0-9A-Za-z_]{22,244})"),
        Kind("slack_token", r"\b(xox[abceoprs]-[0-9A-Za-z-]{10,250}|xapp-[0-9]-[0-9A-Za-z-]{10,250}"
                            r"|hooks[.]slack[.]com/services/T[0-9A-Za-z_]{6,20}/B[0-9A-Za-z_]{6,20}/[0-9A-Za-z_]{16,40})"),
        Kind("google_api_key", r"\b(AIza[0-9A-Za-z_-]{35})"),
        Kind("api_key", r"(?:^|[^0-9A-Za-z_-])([sr]k[_-][0-9A-Za-z_-]{20,250})", checksums.random_key),
        Kind("lockgate_key", r"\b(lg[kp]_[0-9A-Za-z]{12}_[0-9A-Za-z]{32})"),
        Kind("jwt", r"(?:^|[^0-9A-Za-z_-])(eyJ[0-9A-Za-z_-]{8,}[.]eyJ[0-9A-Za-z_-]+[.][0-9A-Za-z_-]*)", longest=8192),
        Kind("url_credentials", rf"\b[A-Za-z][0-9A-Za-z+.-]{{1,20}}://([{_IN_URL}]{{0,100}}:[:@{_IN_URL}]{{1,200}})@",
             checksums.credential),
        Kind("authorization_header",
             rf"(?i:authorization){_ASSIGNED}{_QUOTES}(?i:bearer|basic|token|digest) {{1,3}}([0-9A-Za-z._~+/-]{{8,}}={{0,2}})",
             checksums.credential, longest=4096),
        Kind("assigned_secret",
             rf"""{_KEYWORD}{_ASSIGNED}(?:\\?"([^"\\\s]{{8,128}})|\\?'([^'\\\s]{{8,128}})|({_BARE}[0-9]{_BARE}))""",
             checksums.secret_value),
    ),
    "": (
        Kind("ip_address", r"(?:^|[^0-9A-Za-z.:])((?:[0-9]{1,3}[.]){3}[0-9]{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})"
                           "(?:$|[^0-9A-Za-z.:]|[.:](?:$|[^0-9A-Za-z]))", checksums.public_ip),
    ),
}
