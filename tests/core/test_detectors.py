"""Rules name detectors, and a detector finds what it should and nothing else, in time that grows with the text only."""
# ruff: noqa: RUF001 - digits and hyphens that only look like the plain ones are what is tested

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import detectors as module
from gateway.core.detectors import DetectionError, Detectors, PatternDetector, pattern_detector
from gateway.core.patterns import Pattern, PatternError
from gateway.core.shipped_detectors import KINDS

SHIPPED = Detectors()
EVERY = (*SHIPPED.named("pii"), *SHIPPED.named("secrets"), *SHIPPED.named("ip_address"))


def found(name: str, text: str) -> list[str]:
    return [text[start:end] for detector in SHIPPED.named(name) for start, end in detector.find(text)]


class Own:
    name = "mine"
    longest = 3

    def find(self, text, start=0):
        return iter([(start, start + 3)] if len(text) >= start + 3 else [])


def test_rules_name_a_detector_or_a_group():
    assert [detector.name for detector in SHIPPED.named("pii")] == ["email", "phone", "credit_card", "iban", "us_ssn", "date_of_birth"]
    assert [detector.name for detector in SHIPPED.named("email")] == ["email"]
    assert {"private_key", "jwt", "assigned_secret"} <= {detector.name for detector in SHIPPED.named("secrets")}
    assert SHIPPED.names[:2] == ("pii", "secrets")
    assert "ip_address" in SHIPPED.names


def test_addresses_of_machines_are_not_personal_data_unless_somebody_says_so():
    assert "ip_address" not in {detector.name for detector in SHIPPED.named("pii")}
    assert found("ip_address", "from 8.8.8.8, not 10.0.0.1") == ["8.8.8.8"]


@pytest.mark.parametrize(("name", "message"), [
    ("emial", "there is no detector 'emial': did you mean \"email\"?"), ("zzz", "there is no detector 'zzz': there is api_key, assigned_secret, "), ("", "there is no")])
def test_an_unknown_name_is_answered_with_what_there_is(name, message):
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        SHIPPED.named(name)


def test_a_deployment_may_have_its_own_detectors():
    own = Own()
    detectors = Detectors((own,))
    assert detectors.named("mine") == (own,)
    assert own not in detectors.named("pii")
    assert "mine" in detectors.names
    assert "mine" not in SHIPPED.names


@pytest.mark.parametrize("taken", ["email", "pii", "pattern", "field", "mine"])
def test_a_name_is_taken_once(taken):
    own = Own()
    own.name = taken
    with pytest.raises(ValueError, match=f"'{taken}' is taken"):
        Detectors((Own(), own))


def test_a_pattern_of_a_rule_is_a_detector():
    detector = pattern_detector(r"PROJ-(\d{1,5})")
    assert (detector.name, detector.longest) == ("pattern", 10)
    assert list(detector.find("see PROJ-12, PROJ-x, PROJ-1234567")) == [(4, 11), (21, 31)]
    assert list(detector.find("see PROJ-12, PROJ-3", 5)) == [(13, 19)]
    with pytest.raises(PatternError, match="missing"):
        pattern_detector("(")


def test_a_pattern_without_an_end_says_so():
    assert pattern_detector("BEGIN.*END").longest is None


def test_a_pattern_that_looks_at_everything_again_and_again_is_stopped(monkeypatch):
    """`a(.*b)?` looks through all the rest for every `a`: a text that is not looked through must not pass for clean."""
    monkeypatch.setattr(module, "_WORK", 1000)
    text = "a" * 1000
    with pytest.raises(DetectionError, match=r"matches too often in a text of 1000 characters: give its repetitions an end"):
        list(pattern_detector("(?s)a(.*b)?").find(text))
    assert len(list(pattern_detector("(?s)a(.{0,200}b)?").find(text))) == 1000


def test_a_text_that_is_nothing_but_likely_values_is_stopped(monkeypatch):
    """Ten megabytes of what looks like cards would take somebody's server for many seconds."""
    monkeypatch.setattr(module, "_MOST_MATCHES", 100)
    assert found("credit_card", "2234 " * 103) == []
    with pytest.raises(DetectionError, match="a text of 520 characters holds more than 100 things like `credit_card`"):
        found("credit_card", "2234 " * 104)


@pytest.mark.parametrize("kind", [kind for kinds in KINDS.values() for kind in kinds], ids=lambda kind: kind.name)
def test_every_shipped_detector_has_an_end(kind):
    """Where the pattern knows none, it matches ASCII only: its limit is counted in bytes."""
    pattern = Pattern(kind.source, captured=True)
    assert (pattern.longest is None) == (kind.longest is not None)
    assert (pattern.longest or kind.longest) <= 16_384


KEY = "b9X2kQ71mZ" * 4
FOUND = [
    ("email", "john@example.com"), ("email", "john.o'brien+x@mail.example.co.uk"), ("email", "a_b%c-d@x-y.io"), ("email", "1@163.com"),
    ("phone", "+1 (415) 555-2671"), ("phone", "+14155552671"), ("phone", "+44 (0)20 7946 0958"), ("phone", "+49 30 1234567"), ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"), ("phone", "415.555.2671"), ("phone", "1-415-555-2671"), ("phone", "06 12 34 56 78"), ("phone", "0171/1234567"),
    ("phone", "(020) 7946 0958"), ("phone", "03-1234-5678"), ("phone", "138-1234-5678"), ("phone", "＋４９ ３０ １２３４５６７"), ("phone", "+49‑30‑1234567"), ("phone", "+49\u00a030\u00a01234567"),
    ("credit_card", "4111111111111111"), ("credit_card", "4111 1111 1111 1111"), ("credit_card", "4111-1111-1111-1111"), ("credit_card", "3782 822463 10005"),
    ("credit_card", "3056 930902 5904"), ("credit_card", "4111–1111–1111–1111"), ("credit_card", "４１１１１１１１１１１１１１１１"), ("credit_card", "4222222222222"),
    ("iban", "DE89370400440532013000"), ("iban", "DE89 3704 0044 0532 0130 00"), ("iban", "gb82west12345698765432"), ("iban", "MT84MALT011000012345MTLCAST001S"),
    ("us_ssn", "219-09-9999"), ("us_ssn", "219‑09‑9999"),
    ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEabcdefghijklmnop\nabc-=\n-----END RSA PRIVATE KEY-----"),
    ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\nxyz\n=aBcD\n-----END PGP PRIVATE KEY BLOCK-----"),
    ("private_key", r"-----BEGIN PRIVATE KEY-----\nMIIEabcdefghijklmnop\nMIIEabcdefghijklmnop"), ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE="),
    ("aws_access_key", "AKIA" + "ABCD2345" * 2), ("aws_access_key", "ASIA" + "Q7Z2WXYZ" * 2),
    ("github_token", "ghp_" + "a1B2" * 9), ("github_token", "ghs_" + "a1B2" * 20), ("github_token", "github_pat_" + "a1B2" * 5 + "_x1"),
    ("slack_token", "xoxb-1234567890-abcdef"), ("slack_token", "xapp-1-A0123456789-abc"), ("slack_token", "hooks.slack.com/services/T01234567/B01234567/abcdefghijklmnopqrstuvwx"),
    ("google_api_key", "AIza" + "Sy_-1" * 7), ("api_key", "sk-" + KEY), ("api_key", "sk-proj-" + KEY), ("api_key", "sk_live_" + KEY), ("api_key", "rk_test_" + KEY),
    ("lockgate_key", "lgk_0123456789ab_" + "0123456789abcdef" * 2), ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_def-1"), ("jwt", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."),
]


@pytest.mark.parametrize(("name", "value"), FOUND)
@pytest.mark.parametrize("around", ["{}", " {} ", "({})", "“{}”", "是{}。", "x: {}, y", "{}\n", "<b>{}</b>", "'{}'", "{}; {}"], ids=lambda around: around.replace("{}", "_"))
def test_a_value_is_found_wherever_it_stands(name, value, around):
    """Chinese has no blanks between words: a value right beside a character is one."""
    text = around.replace("{}", value)
    assert [each for each in found(name, text) if each.rstrip(".") == value.rstrip(".")] == [value] * around.count("{}")


@pytest.mark.parametrize(("name", "text", "values"), [
    ("phone", "Tel: 13812345678", ["13812345678"]), ("phone", "电话：13812345678号", ["13812345678"]), ("phone", '"phone": "4155552671"', ["4155552671"]), ("phone", "mobile no. 017112345678.", ["017112345678"]),
    ("phone", "0171/1234567 030-1234567", ["0171/1234567", "030-1234567"]),
    ("credit_card", "1234 4111 1111 1111 1111 5", ["4111 1111 1111 1111"]), ("credit_card", "4111111111111111.", ["4111111111111111"]), ("credit_card", "4111111111111111,4222222222222", ["4111111111111111", "4222222222222"]),
    ("iban", "BE68 5390 0754 7034 PAID", ["BE68 5390 0754 7034"]), ("email", "a@b.co,c@d.co;e@f.co", ["a@b.co", "c@d.co", "e@f.co"]), ("email", "o'brien@x.ie 'z@x.ie'", ["o'brien@x.ie", "z@x.ie"]),
    ("email", "mailto:john@x.io?subject=a", ["john@x.io"]), ("email", "jürgen@firma.de", ["rgen@firma.de"]),
    ("date_of_birth", "born on 12 March 1980 in Rome", ["12 March 1980"]), ("date_of_birth", "DOB: 12/30/1980", ["12/30/1980"]), ("date_of_birth", '"date_of_birth": "1980-12-30"', ["1980-12-30"]),
    ("date_of_birth", "生年月日：1980年12月30日", ["1980年12月30日"]), ("date_of_birth", "née le 3/4/1970", ["3/4/1970"]), ("date_of_birth", "Geburtsdatum 30.12.1980", ["30.12.1980"]),
    ("private_key", "-----BEGIN PRIVATE KEY----- is how a file begins.", ["-----BEGIN PRIVATE KEY-----"]),
    ("private_key", "-----BEGIN PRIVATE KEY-----\n" + "A" * 20_000 + "\n-----END PRIVATE KEY-----", ["-----BEGIN PRIVATE KEY-----\n" + "A" * (16_384 - 28)]),
    ("jwt", "token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc; eyJhbGciOiJIUzI1NiJ9.eyJ" + "a" * 9000 + ".abc", ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"]),
    ("url_credentials", "postgres://bob:hunter2@db:5432/x", ["bob:hunter2"]), ("url_credentials", "https://u:p@ss@host/", ["u:p@ss"]), ("url_credentials", "redis://:hunter2@r", [":hunter2"]),
    ("authorization_header", "Authorization: Bearer abcdef1234567", ["abcdef1234567"]), ("authorization_header", "{'authorization': 'Basic dXNlcjpwYXNz=='}", ["dXNlcjpwYXNz=="]),
    ("assigned_secret", "DB_PASSWORD=hunter2hunter2 x", ["hunter2hunter2"]), ("assigned_secret", "password: 'correcthorsebattery'", ["correcthorsebattery"]), ("assigned_secret", '{"client_secret": "Zx81!kk2p"}', ["Zx81!kk2p"]),
    ("assigned_secret", r'"{\"password\": \"tr0ub4dor&3\"}"', ["tr0ub4dor&3"]), ("assigned_secret", "apiKey := a8d7f6g5h4j3;", ["a8d7f6g5h4j3"]), ("assigned_secret", "密码 password：hunter2hunter2", ["hunter2hunter2"]),
])
def test_a_value_is_found_by_what_stands_before_it(name, text, values):
    assert found(name, text) == values


@pytest.mark.parametrize(("name", "text"), [
    ("email", "john@localhost"), ("email", "@example.com"), ("email", "john@.com"), ("email", "icon@2x.png"), ("email", "git@github.com:a/b"), ("email", "lodash@4.17.21"), ("email", "a" * 65 + "@x.io"),
    ("phone", "01.02.2024 10:30"), ("phone", "2024-01-02"), ("phone", "13812345678"), ("phone", "4155552671"), ("phone", "192.168.100.200"), ("phone", "010.010.010.010"), ("phone", "1.415.5"),
    ("phone", "order 550-123-456"), ("phone", "219-09-9999"), ("phone", "550e8400-e29b-41d4-a716-446655440000"), ("phone", "x+14155552671"), ("phone", "3.14159265358979"),
    ("credit_card", "4111111111111112"), ("credit_card", "x4111111111111111"), ("credit_card", "41111111111111110000"), ("credit_card", "0.4111111111111111"), ("credit_card", "4111111111111111.5"),
    ("credit_card", "1734567890123456"), ("credit_card", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"), ("credit_card", "4111 1111 1111 111"),
    ("iban", "DE89370400440532013001"), ("iban", "US82WEST12345698765432"), ("iban", "XDE89370400440532013000"), ("iban", "DE893704004405320130001"), ("iban", "AB12 this that with more"),
    ("us_ssn", "000-12-3456"), ("us_ssn", "1-219-09-9999"), ("us_ssn", "219-09-9999-1"), ("us_ssn", "219099999"), ("us_ssn", "219-09-99999"),
    ("date_of_birth", "on 12 March 1980"), ("date_of_birth", "born in 1980"), ("date_of_birth", "dob: 13/32/1980"), ("date_of_birth", "stubborn 1/2/1980"),
    ("private_key", "-----BEGIN PUBLIC KEY-----\nMIIEabcdefghijklmnop"), ("private_key", "BEGIN PRIVATE KEY"),
    ("aws_access_key", "AKIA" + "ABCD0189" * 2), ("aws_access_key", "XAKIA" + "ABCD2345" * 2), ("aws_access_key", "AKIA" + "ABCD2345" * 2 + "X"),
    ("github_token", "ghp_short"), ("slack_token", "xoxb-1"), ("google_api_key", "AIza" + "a" * 34), ("lockgate_key", "lgk_0123456789ab_0123"),
    ("api_key", "sk-estimator-html-doc-link-to-docs"), ("api_key", "task-" + KEY), ("api_key", "sk-" + "a" * 40), ("jwt", "eyJhbGciOiJIUzI1NiJ9.abc.def"), ("jwt", "AeyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"),
    ("url_credentials", "https://host:8080/x@y"), ("url_credentials", "https://${U}:${P}@host"), ("url_credentials", "http://a@b:80/"), ("url_credentials", "mailto:a:b@c"),
    ("authorization_header", "Authorization: Bearer <token>"), ("authorization_header", "Authorization: Bearer your_token"), ("authorization_header", "authorization is needed"),
    ("assigned_secret", "password = get_password()"), ("assigned_secret", "token: str = None"), ("assigned_secret", 'token = os.environ["X1"]'), ("assigned_secret", "secret: ${SECRET_1}"), ("assigned_secret", "max_tokens: 123456789"),
    ("assigned_secret", "password: required"), ("assigned_secret", "api_key='your-api-key-1'"), ("assigned_secret", "secret: 'db-credentials'"), ("assigned_secret", "token: 2024-01-01T00:00:00Z"),
    ("ip_address", "1.2.3.4.5"), ("ip_address", "v1.2.3.4"), ("ip_address", "10.1.2.3"), ("ip_address", "12:30:45"), ("ip_address", "std::vector"), ("ip_address", "999.1.1.1"),
])
def test_what_only_looks_like_it_is_left_alone(name, text):
    assert found(name, text) == []


HOSTILE = {
    "digits": "1234567890", "at": "@", "a@": "a@", "cards": "2234 ", "ssn": "012-34-5678-", "phones": "0171 ", "ibans": "DE89 3704 0044 0532 0130 01 ", "begin": "-----BEGIN PRIVATE KEY-----\n",
    "begin, body": "-----BEGIN PRIVATE KEY-----\nMIIEabcdefghijklmnop\n", "eyJ": "eyJaaaaaaaa.", "eyJ-": "eyJ-", "sk-": "sk-", "password=": "password=", "password=1": "password=1 ", "urls": "ab://a:b",
    "hex": "ab:", "dots": "1.", "auth": "authorization: bearer ", "nul": "\0", "half a pair": "\ud800", "wide": "４１１１ ", "born": "born ", "tel": "tel: 1", "quotes": 'token:"a1',
}


def searches(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How often RE2 is asked, and over how many characters that matches may have."""
    asked = 0
    real = Pattern.search

    def counted(self, data, start, end=None):
        nonlocal asked
        asked += 1
        return real(self, data, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(Pattern, "search", counted)
        spans = [list(detector.find(text)) for detector in SHIPPED.named(name)]
    assert all(0 <= start < end <= len(text) for each in spans for start, end in each)
    return asked, sum(map(len, spans))


@pytest.mark.parametrize("shape", HOSTILE)
@pytest.mark.parametrize("name", ["pii", "secrets", "ip_address"])
def test_a_hostile_text_costs_as_many_searches_as_it_is_long(name, shape, monkeypatch):
    short, _ = searches(name, (HOSTILE[shape] * 3000)[:3000], monkeypatch)
    long, _ = searches(name, (HOSTILE[shape] * 12_000)[:12_000], monkeypatch)
    assert long <= 4 * short + 40
    assert long <= 12_000


def test_a_megabyte_of_digits_and_millions_of_signs_are_nothing(monkeypatch):
    assert searches("pii", "0123456789" * 100_000, monkeypatch) == (6, 0)
    assert searches("pii", "@" * 3_000_000, monkeypatch) == (6, 0)


@given(st.text(alphabet=st.sampled_from("aZ09４@.+-_ ('\"=:/\n\0é号\ud800"), max_size=60), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_findings_stand_in_order_inside_the_text_and_none_begins_before_the_start(text, start):
    for detector in EVERY:
        at = start
        for begin, end in detector.find(text, min(start, len(text))):
            assert at <= begin < end <= len(text)
            at = end


@given(st.text(alphabet="ab1 é", max_size=30), st.sampled_from(["a", "ab?", r"\bb", "(?i)A{2}", "é+", "[^a]{2}"]))
def test_a_pattern_finds_what_re2_finds(text, source):
    expected, at = [], 0
    data = text.encode()
    while (match := Pattern(source).search(data, at)) is not None:
        expected.append((len(data[:match[1]].decode()), len(data[:match[2]].decode())))
        at = match[2]
    assert list(PatternDetector("x", Pattern(source)).find(text)) == expected
