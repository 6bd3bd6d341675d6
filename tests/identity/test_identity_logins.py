"""Who somebody is: right and wrong passwords, tokens, cookies, and what an attacker may learn of all that."""

import asyncio
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SystemClock, SystemIds
from gateway.errors import CallError, TooManyLogins, Unauthenticated
from gateway.identity.accounts import TOKEN_LENGTH, digest, new_token
from gateway.identity.actor import ADMIN, PERMISSIONS, includes
from gateway.identity.addresses import client_address, network_of
from gateway.identity.guesses import EVERYWHERE, Came
from gateway.identity.logins import Logins
from gateway.secret import Secret
from gateway.store.approvals_protocol import Person, Stamped

GOOD = "correct horse battery"
STAMP = Stamped("created", "admin", 1)
IDS = SystemIds(SystemClock())


@pytest.fixture
async def ada(people, passwords):
    person = Person("ada", "Ada", "approve", ("finance",), ("blue",), password=await passwords.hash(GOOD))
    await people.add(person, STAMP)
    return person


@pytest.fixture
async def logins(logins, ada):
    """In a house where Ada has an account."""
    _ = ada
    return logins


async def refusal(waiting) -> CallError:
    with pytest.raises((Unauthenticated, TooManyLogins)) as caught:
        await waiting
    return caught.value


async def test_whoever_knows_the_password_is_in_and_is_known_by_the_cookie(logins, people):
    opened = await logins.with_password(" ADA ", GOOD, Came("10.0.0.1"))
    assert opened.actor.voter.id == "ada"
    actor, login = await logins.by_cookie(opened.cookie)
    assert (actor.id, actor.permission, actor.via, actor.voter.method, actor.voter.roles) == ("ada", "approve", "cookie", "password", ("finance",))
    assert actor.voter.login_ns == login.created_ns
    assert opened.cookie.encode() not in repr(await people.login(login.id, now_ns=0)).encode()
    assert opened.cookie not in repr(opened)
    assert login.csrf not in repr(opened)


@pytest.mark.parametrize(("name", "password"), [("ada", "wrong"), ("ada", ""), ("nobody", GOOD), ("", ""), ("admin", GOOD), ("ad\ud800", GOOD)])
async def test_a_wrong_name_and_a_wrong_password_are_answered_alike(logins, name, password):
    error = await refusal(logins.with_password(name, password, Came("10.0.0.1")))
    assert (error.code, error.message) == ("unauthenticated", "The name or the password is wrong.")


@pytest.mark.parametrize("name", ["ada", "nobody", "x" * 300])
async def test_five_wrong_passwords_lock_a_name_for_the_network_they_came_from_whether_somebody_has_it_or_not(logins, clock, log, name):
    for _ in range(5):
        assert (await refusal(logins.with_password(name, "wrong", Came("10.0.0.1")))).code == "unauthenticated"
    locked = await refusal(logins.with_password(name, GOOD, Came("10.0.0.1")))
    assert (locked.code, locked.retry_after_s) == ("too_many_logins", 901)
    assert name not in locked.message
    clock.move(899)
    assert (await refusal(logins.with_password(name, GOOD, Came("10.0.0.1")))).code == "too_many_logins"
    for address, after_s in (("10.0.0.2", 0), ("10.0.0.1", 2)):  # elsewhere at once, there after a while
        clock.move(after_s)
        if name == "ada":
            assert (await logins.with_password(name, GOOD, Came(address))).actor.id == "ada"
        else:
            assert (await refusal(logins.with_password(name, GOOD, Came(address)))).code == "unauthenticated"
    assert [each for each in log.of("login_refused") if name != "ada" and each.get("person")] == []  # what was typed may be a password


@pytest.mark.parametrize("name", ["ada", "nobody"])
async def test_guesses_from_many_networks_are_counted_together(logins, clock, name):
    """Whoever has a thousand addresses guesses no more than fifty times in a quarter of an hour."""
    answers = [(await refusal(logins.with_password(name, "wrong", Came(f"10.{n}.0.1")))).code for n in range(200)]
    assert answers == ["unauthenticated"] * 5 * EVERYWHERE + ["too_many_logins"] * (200 - 5 * EVERYWHERE)
    clock.move(901)
    assert (await refusal(logins.with_password(name, "wrong", Came("10.1.1.1")))).code == "unauthenticated"


async def test_while_a_name_is_locked_for_all_no_network_gets_a_lock_of_its_own(logins, clock):
    """Else whoever tries to get in meanwhile would be locked out for longer than the strangers."""
    for n in range(5 * EVERYWHERE):
        await refusal(logins.with_password("ada", "wrong", Came(f"10.{n}.0.1")))
    clock.move(890)
    for _ in range(9):
        assert (await refusal(logins.with_password("ada", GOOD, Came("10.0.0.1")))).code == "too_many_logins"
    clock.move(11)
    assert (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).actor.id == "ada"


async def test_a_browser_in_which_somebody_has_logged_in_before_is_let_in_whatever_strangers_do(logins, clock):
    """From one network as from many, also from that browser's own: behind a proxy that is everybody's."""
    device = (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device
    for _ in range(3):
        for n in range(5 * EVERYWHERE + 5):
            await refusal(logins.with_password("ada", "wrong", Came(f"10.{n % 20}.0.1")))
        for _ in range(40):
            await refusal(logins.with_password("ada", "wrong", Came("10.0.0.1")))
        assert (await refusal(logins.with_password("ada", GOOD, Came("10.0.0.1")))).code == "too_many_logins"
        opened = await logins.with_password(" Ada ", GOOD, Came("10.0.0.1", device))
        assert (opened.actor.id, opened.device) == ("ada", device)
        clock.move(60)


async def test_a_known_browser_is_no_way_to_guess_more(logins, clock):
    device = (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device
    for n in range(5):
        assert (await refusal(logins.with_password("ada", "wrong", Came(f"10.{n}.0.1", device)))).code == "unauthenticated"
    assert (await refusal(logins.with_password("ada", GOOD, Came("10.9.0.1", device)))).code == "too_many_logins"
    assert (await logins.with_password("ada", GOOD, Came("10.9.0.1"))).actor.id == "ada"  # it locks nobody else
    assert (await refusal(logins.with_password("ada", GOOD, Came("10.9.0.1", device)))).code == "too_many_logins"
    clock.move(901)
    assert (await logins.with_password("ada", GOOD, Came("10.9.0.1", device))).device == device


@pytest.mark.parametrize("other", [
    lambda _: "", lambda device: device[:-1], lambda device: device + "0", lambda device: device.swapcase(), lambda device: "x" + device[1:],
    lambda device: device[:24] + "0" * 64, lambda device: device[:24] + "\ud800" * 64, lambda _: "\u00e4" * 88])
async def test_nobody_makes_a_known_browser_of_their_own(logins, other):
    device = (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device
    for _ in range(5):
        await refusal(logins.with_password("ada", "wrong", Came("10.0.0.1", other(device))))
    assert (await refusal(logins.with_password("ada", GOOD, Came("10.0.0.1", other(device))))).code == "too_many_logins"


async def test_a_browser_is_known_for_whom_it_was_and_for_their_password_alone(logins, people, passwords):
    bob = Person("bob", "Bob", "approve", password=await passwords.hash(GOOD))
    await people.add(bob, STAMP)
    device = (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device
    assert (await logins.with_password("bob", GOOD, Came("10.0.0.1", device))).device != device
    assert (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device != device  # each browser has its own
    kept = await passwords.hash(GOOD)  # the same password, given anew
    await people.change("ada", lambda each: replace(each, password=kept), STAMP)
    for _ in range(5):
        await refusal(logins.with_password("ada", "wrong", Came("10.0.0.1", device)))
    assert (await refusal(logins.with_password("ada", GOOD, Came("10.0.0.1", device)))).code == "too_many_logins"


async def test_without_a_pepper_nobody_can_work_out_what_a_known_browser_has(logins):
    """It is made with the hash of the password too, and so with its salt."""
    logins.guesses = replace(logins.guesses, pepper=Secret(""))
    device = (await logins.with_password("ada", GOOD, Came("10.0.0.1"))).device
    assert logins.guesses.knows("nobody", "", logins.guesses.new_device("nobody", "", IDS)) is False
    assert logins.guesses.knows("ada", "", device) is False


async def test_an_operator_unlocks_a_name_for_everybody(logins, people):
    for n in range(5 * EVERYWHERE):
        await refusal(logins.with_password("ada", "wrong", Came(f"10.{n % 10}.0.1")))
    await people.forgive([logins.guesses.name_digest("ada")])
    for n in range(10):
        assert (await logins.with_password("ada", GOOD, Came(f"10.{n}.0.1"))).actor.id == "ada"


@pytest.mark.parametrize("name", ["ada", "nobody"])
async def test_the_work_for_a_name_that_somebody_has_is_the_work_for_one_that_nobody_has(logins, people, name, monkeypatch):
    work: list[str] = []
    verify, attempt, get = logins.passwords._hasher.verify, people.attempt, people.get

    def verified(_self, kept, given):
        work.append("verify")
        return verify(kept, given)

    monkeypatch.setattr(type(logins.passwords._hasher), "verify", verified)

    async def noted(what, verb, *args, **more):
        work.append(what)
        return await verb(*args, **more)

    monkeypatch.setattr(people, "attempt", lambda *a, **m: noted("attempt", attempt, *a, **m))
    monkeypatch.setattr(people, "get", lambda *a, **m: noted("get", get, *a, **m))
    await refusal(logins.with_password(name, "wrong", Came("10.0.0.1")))
    assert work == ["get", "attempt", "verify"]


async def test_guesses_at_the_same_moment_are_no_more_than_guesses_one_after_another(logins):
    answers = await asyncio.gather(*(refusal(logins.with_password("ada", f"wrong {n}", Came("10.0.0.1"))) for n in range(25)))
    assert sorted(each.code for each in answers).count("unauthenticated") == 5


async def test_the_right_password_makes_the_wrong_ones_forgotten(logins):
    for _ in range(3):
        for _ in range(4):
            await refusal(logins.with_password("ada", "wrong", Came("10.0.0.1")))
        await logins.with_password("ada", GOOD, Came("10.0.0.1"))


async def test_an_address_may_try_thirty_times_and_then_once_every_two_seconds(logins, clock):
    for n in range(30):
        assert (await refusal(logins.with_password(f"name{n}", "wrong", Came("10.0.0.1")))).code == "unauthenticated"
    for waiting in (logins.with_password("ada", GOOD, Came("10.0.0.1")), logins.with_token("the-admin-token", "10.0.0.1")):
        assert (await refusal(waiting)).code == "too_many_logins"
    assert (await logins.with_password("ada", GOOD, Came("10.0.0.2"))).actor.id == "ada"
    clock.move(2)
    assert (await logins.with_token("the-admin-token", "10.0.0.1")).actor.id == "admin"
    assert (await refusal(logins.with_token("the-admin-token", "10.0.0.1"))).code == "too_many_logins"


async def test_the_addresses_of_one_ipv6_network_are_one(logins):
    for n in range(30):
        await refusal(logins.with_token("wrong", f"2001:db8::{n:x}"))
    assert (await refusal(logins.with_token("wrong", "2001:db8::ffff:1"))).code == "too_many_logins"
    assert (await refusal(logins.with_token("wrong", "2001:db8:0:1::1"))).code == "unauthenticated"
    assert (await refusal(logins.with_token("wrong", "::ffff:10.0.0.1"))).code == "unauthenticated"
    assert (await refusal(logins.with_token("wrong", "no address"))).code == "unauthenticated"


@pytest.mark.parametrize(("peer", "forwarded", "proxies", "client"), [
    ("198.51.100.7", [], [], "198.51.100.7"), ("198.51.100.7", ["203.0.113.9"], [], "198.51.100.7"),  # no proxy of ours: anybody can write that
    ("198.51.100.7", ["203.0.113.9"], ["10.0.0.0/8"], "198.51.100.7"),
    ("10.0.0.1", ["203.0.113.9"], ["10.0.0.0/8"], "203.0.113.9"), ("10.0.0.1", [], ["10.0.0.0/8"], "10.0.0.1"),
    ("10.0.0.1", ["192.0.2.1, 203.0.113.9"], ["10.0.0.0/8"], "203.0.113.9"),  # what stands before was sent by the client itself
    ("10.0.0.1", ["192.0.2.1", "203.0.113.9 ,10.0.0.2"], ["10.0.0.0/8"], "203.0.113.9"),  # two proxies, one behind the other
    ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], ["10.0.0.0/8"], "10.0.0.3"),  # somebody inside
    ("10.0.0.1", ["203.0.113.9, unknown"], ["10.0.0.0/8"], "unknown"), ("10.0.0.1", ["203.0.113.9,"], ["10.0.0.0/8"], ""),
    ("::ffff:10.0.0.1", ["2001:db8::1"], ["10.0.0.0/8"], "2001:db8::1"), ("fd00::1", ["203.0.113.9"], ["fd00::/8", "10.0.0.1"], "203.0.113.9"),
    ("", ["203.0.113.9"], ["10.0.0.0/8"], ""), ("/run/socket", ["203.0.113.9"], ["10.0.0.0/8"], "/run/socket"),
])
def test_whom_a_proxy_of_ours_names_last_is_who_has_sent_it_and_nobody_else_s_word_counts(peer, forwarded, proxies, client):
    assert client_address(peer, forwarded, tuple(map(ip_network, proxies))) == client


def test_one_person_s_addresses_are_one_place():
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("2001:db8::1") == network_of("2001:DB8:0:0:ffff::1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert (network_of(""), network_of("unknown")) == ("", "unknown")


async def test_addresses_do_not_heap_up(logins):
    logins.addresses._most = 10
    for n in range(50):
        logins.addresses.take(f"10.0.1.{n}")
    assert len(logins.addresses._full_at) == 10


async def test_an_api_token_is_its_person_s_and_only_as_long_as_they_are(logins, people):
    text, kept = new_token(IDS, Secret("pepper"))
    await people.change("ada", lambda person: replace(person, token=kept), STAMP)
    actor = await logins.by_token(text)
    assert (actor.id, actor.via, actor.voter.method, actor.voter.login_ns) == ("ada", "token", "token", 0)
    assert (await logins.with_token(text, "10.0.0.1")).actor.via == "cookie"
    assert len(text) == TOKEN_LENGTH
    for wrong in (text[:-1], text + "x", text.lower(), "lgp_" + "x" * 45, "", "\udcff" * 49, text.replace("lgp_", "lgk_")):
        assert await logins.by_token(wrong) is None
    await people.change("ada", lambda person: replace(person, disabled_ns=1), STAMP)
    assert await logins.by_token(text) is None
    assert (await refusal(logins.with_token(text, "10.0.0.1"))).code == "unauthenticated"


async def test_under_another_pepper_no_token_and_no_cookie_is_known(logins, people):
    text, kept = new_token(IDS, Secret("pepper"))
    await people.change("ada", lambda person: replace(person, token=kept), STAMP)
    opened = await logins.with_token(text, "10.0.0.1")
    logins.pepper = Secret("another")
    assert await logins.by_token(text) is None
    assert await logins.by_cookie(opened.cookie) is None


async def test_with_another_admin_token_the_logins_of_the_old_one_are_over(logins):
    admin = await logins.with_token("the-admin-token", "10.0.0.1")
    person = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    assert (await logins.by_cookie(admin.cookie))[0].permission == "admin"
    for changed in (Secret("a-new-one"), None):
        logins.admin_token = changed
        assert await logins.by_cookie(admin.cookie) is None
        assert await logins.by_token("the-admin-token") is None
        assert (await logins.by_cookie(person.cookie))[0].id == "ada"


@pytest.mark.parametrize("other", [
    lambda cookie: "lga_" + cookie[4:], lambda cookie: cookie[:-1], lambda cookie: cookie + "x", lambda _: "", lambda _: "lgs_" + "\ud800" * 48,
    lambda cookie: cookie.swapcase()])
async def test_a_cookie_that_was_not_given_out_is_nobody_s(logins, other):
    opened = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    assert await logins.by_cookie(other(opened.cookie)) is None
    assert await logins.by_cookie(opened.cookie) is not None


async def test_a_login_ends_when_it_is_not_used_and_in_any_case(logins, clock):
    idle = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    clock.move(3599)
    assert await logins.by_cookie(idle.cookie) is not None
    clock.move(3599)
    assert await logins.by_cookie(idle.cookie) is not None  # it was used meanwhile
    clock.move(3600)
    assert await logins.by_cookie(idle.cookie) is None
    clock.move(-3600)
    assert await logins.by_cookie(idle.cookie) is None  # what is over does not come back, whatever a clock does
    used = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    for _ in range(43):
        clock.move(1000)
        assert await logins.by_cookie(used.cookie) is not None
    clock.move(200)
    assert await logins.by_cookie(used.cookie) is None


async def test_what_a_page_asks_by_itself_does_not_keep_a_login(logins, clock):
    opened = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    for _ in range(3):
        clock.move(1100)
        assert await logins.by_cookie(opened.cookie, used=False) is not None
    clock.move(300)
    assert await logins.by_cookie(opened.cookie, used=False) is None


async def test_a_change_of_the_account_counts_for_logins_that_there_are(logins, people):
    opened = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    await people.change("ada", lambda person: replace(person, permission="view", roles=()), STAMP)
    actor, _login = await logins.by_cookie(opened.cookie)
    assert (actor.permission, actor.voter.roles) == ("view", ())
    await people.change("ada", lambda person: replace(person, permission="emperor"), STAMP)  # written into the database by hand
    assert await logins.by_cookie(opened.cookie) is None
    await people.change("ada", lambda person: replace(person, permission="view", disabled_ns=1), STAMP)
    assert await logins.by_cookie(opened.cookie) is None
    assert (await refusal(logins.with_password("ada", GOOD, Came("10.0.0.1")))).code == "unauthenticated"


async def test_what_the_identity_provider_said_at_a_login_is_what_counts_for_it(logins, ada):
    opened = await logins.open(ada, "oidc", "10.0.0.1", said=(("cfo",), ("green",)))
    actor, _login = await logins.by_cookie(opened.cookie)
    assert (actor.voter.roles, actor.voter.teams, actor.voter.method) == (("cfo",), ("green",), "oidc")


async def test_a_login_is_closed_once(logins, log):
    opened = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    await logins.close(opened.cookie)
    await logins.close(opened.cookie)
    assert await logins.by_cookie(opened.cookie) is None
    assert len(log.of("logout")) == 1


async def test_neither_passwords_nor_tokens_nor_cookies_are_logged(logins, log):
    opened = await logins.with_password("ada", GOOD, Came("10.0.0.1"))
    await refusal(logins.with_password("hunter2-in-the-wrong-field", "hunter2", Came("10.0.0.1")))
    await refusal(logins.with_token("lgp_secret", "10.0.0.1"))
    told = repr(log.lines)
    assert [secret for secret in (GOOD, "hunter2", "lgp_", opened.cookie, opened.login.csrf) if secret in told] == []


async def test_where_no_admin_token_is_set_none_is_right(people, clock, log, passwords, logins):
    closed = Logins(people, logins.settings, Secret("p"), None, clock, IDS, log, passwords)
    for token in ("", "None", "the-admin-token"):
        assert await closed.by_token(token) is None


@given(st.sampled_from(PERMISSIONS), st.sampled_from(PERMISSIONS), st.sampled_from(PERMISSIONS))
def test_permissions_are_in_one_order(one, two, three):
    assert includes(one, one)
    assert includes(one, two) or includes(two, one)
    assert not (includes(one, two) and includes(two, one)) or one == two
    assert not (includes(one, two) and includes(two, three)) or includes(one, three)
    assert includes(ADMIN.permission, one)


@given(st.text(), st.text())
def test_two_texts_have_one_digest_only_if_they_are_one(one, two):
    assert (digest(Secret("p"), one) == digest(Secret("p"), two)) is (one == two)
