"""Arithmetic tells real numbers from such as look like them."""
# ruff: noqa: RUF001 - digits and hyphens that only look like the plain ones are what is tested

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import checksums
from gateway.core.checksums import IBAN_LENGTHS


def luhn_by_hand(digits: str) -> bool:
    """As ISO/IEC 7812-1 describes it, one digit after the other."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


@given(st.text(alphabet="0123456789", max_size=40))
def test_luhn_is_what_the_standard_describes(digits):
    assert checksums.luhn(digits) == luhn_by_hand(digits)


@given(st.text(alphabet="0123456789", min_size=12, max_size=18), st.data())
def test_luhn_sees_every_wrong_digit(digits, data):
    check = next(digit for digit in "0123456789" if checksums.luhn(digits + digit))
    place = data.draw(st.integers(0, len(digits) - 1))
    wrong = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != digits[place]]))
    assert not checksums.luhn(digits[:place] + wrong + digits[place + 1:] + check)


@pytest.mark.parametrize("number", [
    "4111111111111111", "4222222222222", "4111 1111 1111 1111", "5555-5555-5555-4444", "2223003122003222", "378282246310005", "3714 496353 98431",
    "30569309025904", "3056 930902 5904", "6011111111111117", "3530111333300000", "6200000000000005", "6759649826438453", "5019717010103742",
    "４１１１１１１１１１１１１１１１"])
def test_a_card_of_any_issuer_is_one(number):
    assert checksums.card(number) == len(number)


@pytest.mark.parametrize("number", [
    "4111111111111112", "41111111111111116", "1111111111111117", "9999999999999995", "3400000000000000", "2000000000000000006", "0000000000000000"])
def test_a_number_of_the_wrong_issuer_or_length_is_no_card(number):
    assert checksums.card(number) == 0


IBANS = ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR1420041010050500013M02606", "NO9386011117947", "MT84MALT011000012345MTLCAST001S",
         "BE68 5390 0754 7034", "de89 3704 0044 0532 0130 00", "LC55 HEMM 0001 0001 0012 0012 0002 3015", "RU0204452560040702810412345678901"]


@pytest.mark.parametrize("number", IBANS)
def test_an_iban_of_any_country_is_one_and_what_follows_is_not(number):
    assert checksums.iban(number) == len(number)
    assert checksums.iban(number + " AND MORE") == len(number)
    assert checksums.iban(number + "0") == 0
    assert checksums.iban(number[:-1]) == 0


@pytest.mark.parametrize("number", IBANS)
def test_an_iban_with_a_wrong_digit_is_none(number):
    for place in (place for place, letter in enumerate(number) if letter.isdecimal()):
        assert checksums.iban(number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1:]) == 0


def test_a_country_without_ibans_has_none():
    assert checksums.iban("US82WEST12345698765432") == 0
    assert all(15 <= length <= 33 for length in IBAN_LENGTHS.values())


@pytest.mark.parametrize(("text", "real"), [
    ("219-09-9999", True), ("000-12-3456", False), ("666-12-3456", False), ("900-12-3456", False), ("219-00-9999", False), ("219-09-0000", False)])
def test_a_social_security_number_that_cannot_have_been_given_out_is_none(text, real):
    assert checksums.us_ssn(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "found"), [
    ("+14155552671", "+14155552671"), ("＋４９３０１２３４５６７", "＋４９３０１２３４５６７"), ("(415) 555-2671", "(415) 555-2671"), ("06 12 34 56 78", "06 12 34 56 78"),
    ("06 12 34 56 78 0171 123", "06 12 34 56 78"), ("+4930123456 17012345678", "+4930123456"), ("01.02.2024 10", ""), ("010.010.010.010", ""),
    ("0000 000 000", ""), ("0171 123", ""), ("1234567890123456", "")])
def test_a_telephone_number_has_as_many_digits_as_they_have(text, found):
    assert text[:checksums.phone(text)] == found


@pytest.mark.parametrize(("text", "real"), [
    ("1980-12-30", True), ("30.12.1980", True), ("12/30/80", True), ("1/2/80", True), ("12 March 1980", True), ("March 3rd, 1980", True), ("1980年12月30日", True),
    ("3. Mai 1980", True), ("1980-13-30", False), ("0-0-1980", False), ("12 Apples 1980", False), ("45 March 1980", False), ("1-1-3000", False), ("14.15.16", False), ("1.2.100", False)])
def test_a_date_is_a_day_that_there_is(text, real):
    assert checksums.date(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "real"), [
    ("john@corp.com", True), ("git@github.com", False), ("icon@2x.png", False), ("logo@3x.SVG", False), ("digit@corp.com", True)])
def test_an_address_is_no_picture_and_no_remote(text, real):
    assert checksums.email(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "real"), [
    ("8.8.8.8", True), ("10.0.0.1", False), ("127.0.0.1", False), ("256.1.1.1", False), ("2001:4860:4860::8888", True), ("::1", False), ("12:30:45", False)])
def test_a_public_address_is_one_that_is_reached_from_everywhere(text, real):
    assert checksums.public_ip(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "real"), [
    ("sk-" + "a1B2c3D4e5F6g7H8", True), ("sk-proj-" + "q9w8e7r6t5z4u3i2o1", True), ("sk-estimator-html-doc-link", False), ("sk-" + "a" * 30, False),
    ("sk-" + "1234567890" * 2, False), ("sk-" + "ab1" * 8, False)])
def test_a_key_is_what_a_machine_made(text, real):
    assert checksums.random_key(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "real"), [
    ("bob:hunter2", True), ("bob:${PASSWORD}", False), ("bob:{{ pw }}", False), ("bob:<password>", False), ("u:xxxx", False), ("u:****", False), ("your_token_here", False), ("dXNlcjpwYXNz", True)])
def test_a_template_is_no_credential(text, real):
    assert checksums.credential(text) == (len(text) if real else 0)


@pytest.mark.parametrize(("text", "real"), [
    ("hunter22", True), ("hunter2", False), ("correcthorsebattery", True), ("Tr0ub4dor&3", True), ("Pa$$w0rd", True), ("aaaaaaaa", False), ("1111-1111", False), ("os.environ[", False),
    ("get_secret(1)", False), ("db-credentials", False), ("application/json", False), ("2024-01-01T00:00:00Z", False), ("changeme123", False), ("required", False), ("example-key-1", False)])
def test_a_secret_is_no_word_no_code_and_no_date(text, real):
    assert checksums.secret_value(text) == (len(text) if real else 0)


def test_entropy_is_bits_a_character():
    assert checksums.entropy("aaaa") == 0
    assert checksums.entropy("0123456789abcdef") == 4


@given(st.text(alphabet="0123456789０１２３４５６７８９ .-", min_size=1), st.sampled_from(["card", "phone", "us_ssn"]))
def test_no_check_fails_on_what_its_pattern_may_hand_it(text, name):
    assert 0 <= getattr(checksums, name)("1" + text + "1" * 9) <= len(text) + 10
