"""The bootstrap ceremony against its real service, without a machine: the whole, and each attack on it."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ceremony_kit as kit
import pytest
from ceremony_kit import FILES, Held, held, key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from casemate import approval, strictjson
from casemate.build import ceremony as rules
from casemate.build import ceremonyhost, ceremonyreport, forms
from casemate.build import ceremonyplan as plans
from casemate.build import ceremonysession as sessions
from casemate.build.ceremony import Ceremony
from casemate.build.ceremonyhost import VisitError
from casemate.build.ceremonypage import page
from casemate.build.ceremonyplan import CeremonyError, Role
from casemate.build.job import Part
from casemate.certificates.chain import verify_chain
from casemate.errors import CasemateError
from casemate.guest import bootstrap as service
from casemate.guest.report import Stop


@pytest.fixture
def open_one() -> Iterator[Held]:
    with held() as found:
        yield found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A ceremony that took place: its directory and plan."""
    directory = tmp_path_factory.mktemp("ceremony")
    with held() as found:
        found.to_the_end(directory)
        return directory, found.service.plan


def refused(wanted: str, act: Callable[[], object]) -> None:
    with pytest.raises(CasemateError) as caught:
        act()
    assert caught.value.id == wanted, caught.value.diagnostics()


def report(directory: Path, plan: Any, **more: Any) -> ceremonyreport.Report:
    answer, transcript = ((directory / name).read_bytes() for name in ("session.json", "transcript.jsonl"))
    more = {"transcript": transcript, "evidence": evidence(directory), "known": plan.digest, **more}
    return ceremonyreport.verify(plan, answer, **more)


def evidence(directory: Path) -> sessions.Evidence:
    names = (ceremonyhost.HEADER, ceremonyhost.MEASUREMENT, ceremonyhost.PROTECTION_KEY)
    return sessions.Evidence(*((directory / name).read_bytes() for name in names))


# --- the whole --------------------------------------------------------------------------------------------------


def test_a_ceremony_leads_to_an_image_and_a_transcript_that_verifies(finished: tuple[Path, Any]) -> None:
    directory, plan = finished
    files = {
        path.name: Part(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in (directory / "buildvm").iterdir()
    }
    found = report(directory, plan, root=kit.root_pem(), files=files)
    assert found.holds and found.development and not found.missing, found.as_dict()
    assert [step.action for step in found.steps] == [
        *(
            "open",
            "approve",
            "approve",
            "hosts",
            "contribute",
            "contribute",
            "request",
            "certify",
            "built",
            "witness",
            "end",
        )
    ]
    built = directory / "buildvm"
    chain = [(built / name).read_bytes() for name in ("attestation.crt", "intermediate.crt")]
    assert verify_chain(chain[0], [kit.root_pem()], time=forms.moment(), untrusted=[chain[1]]).proved
    who = approval.parse_reviewers((built / "reviewers.json").read_bytes())
    assert set(who.keys) == {"alice", "bob"} and who.threshold == 2


def test_no_key_of_the_ceremony_is_valid_after_it(finished: tuple[Path, Any]) -> None:
    directory, plan = finished
    who = approval.parse_reviewers((directory / "buildvm/reviewers.json").read_bytes())
    used = {plans.spki(plans.public_key(pem, "PLAN", name)) for name, pem in plan.personas.items()}
    assert not used & {plans.spki(one) for one in who.keys.values()}


def test_no_secret_is_in_what_comes_out(finished: tuple[Path, Any]) -> None:
    directory, _ = finished
    everything = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in everything
    for name in ("dave", "frank"):
        assert f"a share that {name} keeps".encode() not in everything


def test_the_page_shows_who_did_what_and_what_is_missing(finished: tuple[Path, Any], open_one: Held) -> None:
    directory, plan = finished
    whole = page(report(directory, plan))
    assert "is complete, and every check holds" in whole and "<script" not in whole and "DEVELOPMENT TEE" in whole
    for text in (*kit.PEOPLE, *plans.ACTIONS):
        assert text in whole
    open_one.approve("alice")
    seen = open_one.visit.look()
    visit = open_one.visit
    part = page(ceremonyreport.verify(seen.plan, visit.answer, seen.as_bytes(), evidence=visit.evidence, asked=True))
    assert "is not complete" in part and "1 of reviewers (bob, carol)" in part


def test_the_page_escapes_what_a_plan_says() -> None:
    plan = kit.plan(organization="<script>alert(1)</script>")
    with held(plan) as found:
        seen = found.visit.look()
        made = page(ceremonyreport.verify(plan, found.visit.answer, seen.as_bytes()))
    assert "<script" not in made


# --- the plan ---------------------------------------------------------------------------------------------------


def test_one_person_under_two_names_is_refused() -> None:
    people = {name: kit.pem(key("alice" if name == "bob" else name)) for name in kit.PEOPLE}
    refused("CEREMONY-PLAN", lambda: kit.plan(personas=people).as_bytes())


@pytest.mark.parametrize("lasting", ["root key", "pipeline"])
def test_nobody_takes_part_with_a_key_that_is_valid_afterwards(lasting: str) -> None:
    people = {name: kit.pem(key(lasting if name == "rita" else name)) for name in kit.PEOPLE}
    refused("CEREMONY-PLAN", lambda: kit.plan(personas=people).as_bytes())


def test_one_person_in_two_roles_is_refused() -> None:
    roles = dict(kit.plan().roles)
    roles["custodians"] = Role(("dave", "alice"), 2)
    refused("CEREMONY-PLAN", lambda: kit.plan(roles=roles).as_bytes())


def test_a_pipeline_s_key_is_one_on_p_384_or_none_is_named() -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    strange = kit.pem(rsa.generate_private_key(65537, 3072))
    for wrong in (strange, "a key", kit.pem(ec.generate_private_key(ec.SECP256R1()))):
        refused("CEREMONY-PLAN", lambda wrong=wrong: kit.plan(pipeline=wrong).as_bytes())
    assert plans.parse_plan(kit.plan(pipeline="").as_bytes()).pipeline == ""


@pytest.mark.parametrize("role", ["reviewers", "custodians"])
def test_a_quorum_of_one_is_refused_where_it_must_be_two(role: str) -> None:
    roles = dict(kit.plan().roles)
    roles[role] = replace(roles[role], quorum=1)
    refused("CEREMONY-PLAN", lambda: kit.plan(roles=roles).as_bytes())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_plan_a_line_an_entry_or_refused(data: bytes) -> None:
    for parse in (plans.parse_plan, rules.parse_line, rules.parse_entry, rules.hosts_of):
        with pytest.raises(CeremonyError):
            parse(data)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda c: st.lists(c, max_size=3)),
    st.data(),
)
def test_a_plan_with_any_value_in_it_is_one_or_refused(value: Any, data: st.DataObject) -> None:
    document = json.loads(_PLAN)
    document[data.draw(st.sampled_from(sorted(document)))] = value
    try:
        found = plans.parse_plan(json.dumps(document).encode())
    except CeremonyError:
        return
    assert plans.parse_plan(found.as_bytes()) == found


_PLAN = kit.plan().as_bytes()


# --- who does what, and when ------------------------------------------------------------------------------------


def test_nobody_does_anothers_part(open_one: Held) -> None:
    visit, plan = open_one.visit, open_one.service.plan
    seen = visit.look()
    content = rules.next_key(seen.session, "mallory", key("mallory"), "file")
    for said in (
        {"role": "reviewers", "action": "approve"},
        {"persona": "alice", "role": "reviewers", "action": "approve"},
    ):
        entry = kit.forge(plan, seen.session, "dave", content, seen.head, key("dave"), **said)
        refused("CEREMONY-ROLE", lambda entry=entry: visit._ask("POST", "/entry", 1 << 20, entry))


def test_nobody_signs_for_another_or_without_a_key_of_the_plan(open_one: Held) -> None:
    visit = open_one.visit
    content = rules.next_key(visit.look().session, "alice", key("alice's next"), "file")
    refused("CEREMONY-PERSONA", lambda: visit.act("alice", key("bob"), "file", content))
    refused("CEREMONY-PERSONA", lambda: visit.act("alice", key("mallory"), "file", content))
    refused("CEREMONY-PERSONA", lambda: visit.act("mallory", key("mallory"), "file", content))


def test_nobody_acts_twice(open_one: Held) -> None:
    open_one.approve("alice")
    refused("CEREMONY-TWICE", lambda: open_one.approve("alice"))


def test_a_part_comes_after_those_that_it_rests_on(open_one: Held) -> None:
    visit = open_one.visit
    visit.look()
    refused("CEREMONY-ORDER", lambda: visit.contribute("dave", key("dave"), b"a share of dave, kept"))
    refused("CEREMONY-ORDER", lambda: visit.give_hosts("heidi", key("heidi"), [("HKD.crt", kit.host())]))
    refused("CEREMONY-ORDER", lambda: visit.act("rita", key("rita"), "file", b"{}"))
    refused("CEREMONY-ORDER", lambda: visit.act("oscar", key("oscar"), "file", b""))


def test_a_part_that_is_over_takes_nobody_any_more(open_one: Held) -> None:
    open_one.to_the_request()
    refused("CEREMONY-TIME", lambda: open_one.approve("carol"))
    refused("CEREMONY-TIME", lambda: open_one.visit.contribute("erin", key("erin"), b"a share of erin, late"))


def test_nothing_is_taken_before_or_after_the_window() -> None:
    clock = kit.Clock()
    plan = kit.plan()
    with held(plan, clock) as found:
        clock.ahead = 3600
        refused("CEREMONY-TIME", lambda: found.approve("alice"))
    seen = found.visit.seen
    assert seen is not None
    payload = rules.statement(plan, seen.session, "alice", b"", seen.head, "file", ("0" * 64, "1" * 64))
    signature = plans.sign(key("alice"), rules.STATEMENT_TYPE, payload)
    early = plan.not_before - datetime.timedelta(seconds=1)
    refused("CEREMONY-TIME", lambda: seen.check(payload, signature, "alice", b"", early))


def test_the_port_opens_with_the_window_and_the_machine_ends_with_it() -> None:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    second = datetime.timedelta(seconds=1)
    plan = kit.plan(not_before=now + 2 * second, not_after=now + 5 * second)
    made = kit.bootstrap(plan)
    with kit.running(made, grace=1.0) as thread:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", thread.port), 1)  # type: ignore[attr-defined]
        time.sleep(3)
        visit = kit.visit(thread.port, plan)  # type: ignore[attr-defined]
        assert visit.look().lines
        thread.join(10)
        assert not thread.is_alive()
        refused("CEREMONY-UNREACHABLE", visit.look)
    assert made.ceremony.lines[-1].facts == {"outcome": "expired"} and not made._shares


def test_a_machine_that_starts_after_the_window_does_not_open() -> None:
    past = kit.plan()
    past = replace(past, not_before=past.not_before, not_after=past.not_before + datetime.timedelta(minutes=1))
    with pytest.raises(Stop) as caught:
        kit.bootstrap(past).hold("127.0.0.1", 0)
    assert caught.value.id == "HPL19002E"


def test_a_statement_of_another_ceremony_or_session_is_refused(open_one: Held) -> None:
    with held(kit.plan(nonce="1" * 32)) as other, held(open_one.service.plan) as again:
        for one in (other, again):
            one.approve("alice")
            line = one.visit.look().of("approve")[0]
            entry = rules.entry(line.statement, line.signature, "alice", line.content)
            refused("CEREMONY-OTHER", lambda entry=entry: open_one.visit._ask("POST", "/entry", 1 << 20, entry))


def test_hosts_of_two_persons_must_be_the_same() -> None:
    roles = dict(kit.plan().roles)
    roles["hosts"], roles["custodians"] = Role(("heidi", "erin"), 2), Role(("dave", "frank"), 2)
    with held(kit.plan(roles=roles)) as found:
        found.approve("alice", "bob")
        found.visit.give_hosts("heidi", key("heidi"), [("HKD.crt", kit.host())])
        refused("CEREMONY-CONTENT", lambda: found.visit.give_hosts("erin", key("erin"), [("other.crt", kit.host())]))


def test_a_key_of_the_ceremony_is_not_the_next_key_of_anybody(open_one: Held) -> None:
    visit = open_one.visit
    for mine in ("alice", "bob", "root key", "pipeline"):
        refused("CEREMONY-CONTENT", lambda mine=mine: visit.approve("alice", key("alice"), key(mine)))
    open_one.approve("alice")
    refused("CEREMONY-CONTENT", lambda: visit.approve("bob", key("bob"), key("alice's next")))


def test_content_that_was_not_signed_is_refused(open_one: Held) -> None:
    seen = open_one.visit.look()
    content = rules.next_key(seen.session, "alice", key("alice's next"), "file")
    payload = rules.statement(seen.plan, seen.session, "alice", content, seen.head, "file", ("0" * 64, "1" * 64))
    other = rules.next_key(seen.session, "alice", key("mallory"), "file")
    entry = rules.entry(payload, plans.sign(key("alice"), rules.STATEMENT_TYPE, payload), "alice", other)
    refused("CEREMONY-CONTENT", lambda: open_one.visit._ask("POST", "/entry", 1 << 20, entry))


# --- secrets ----------------------------------------------------------------------------------------------------


def test_a_contribution_opens_in_its_session_for_its_persona_only(open_one: Held) -> None:
    open_one.approve("alice", "bob")
    visit = open_one.visit
    session = visit.look().session
    salt, share = b"s" * 32, b"what only dave knows"
    content, sealed = sessions.commitment(salt, share), sessions.seal_share(session, "dave", salt, share)
    # erin sends what she saw dave send as her own, with his commitment
    refused("CEREMONY-CONTENT", lambda: visit.act("erin", key("erin"), "file", content, sealed))
    with held(open_one.service.plan) as other:
        other.approve("alice", "bob")
        refused("CEREMONY-CONTENT", lambda: other.visit.act("dave", key("dave"), "file", content, sealed))
    visit.act("dave", key("dave"), "file", content, sealed)
    # what anybody can fetch has the commitment, and nothing from which the share could be guessed
    fetched = visit._ask("GET", "/transcript", 1 << 20) + visit._ask("GET", "/status", 1 << 20)
    assert share not in fetched and hashlib.sha256(share).hexdigest().encode() not in fetched
    assert sealed not in fetched and strictjson.b64(sealed).encode() not in fetched
    for path in ("/share", "/shares/dave", "/result/dave", "/../run/casemate", "/parts/kernel"):
        with pytest.raises(VisitError):
            visit._ask("GET", path, 1 << 20)


def test_a_contribution_that_is_not_what_was_committed_to_is_refused(open_one: Held) -> None:
    open_one.approve("alice", "bob")
    session = open_one.visit.look().session
    sealed = sessions.seal_share(session, "dave", b"s" * 32, b"another share than that")
    content = sessions.commitment(b"s" * 32, b"the share that was told")
    refused("CEREMONY-CONTENT", lambda: open_one.visit.act("dave", key("dave"), "file", content, sealed))


def test_two_custodians_do_not_give_the_same_secret(open_one: Held) -> None:
    open_one.approve("alice", "bob")
    open_one.visit.contribute("dave", key("dave"), b"what both of them know")
    again = b"what both of them know"  # with another salt, so it is another commitment
    refused("CEREMONY-CONTENT", lambda: open_one.visit.contribute("erin", key("erin"), again))
    open_one.visit.contribute("erin", key("erin"), b"what only erin knows")


def test_what_comes_of_contributions_nobody_can_compute() -> None:
    told = [b"one", b"two"]
    assert service.mix(told, b"x") != service.mix(told, b"x")


# --- the root's answer ------------------------------------------------------------------------------------------


def answers(found: Held) -> dict[str, bytes]:
    """Answers that are not what was asked for, by what is wrong."""
    plan, request = found.service.plan, found.visit.wait("request").request()
    good = json.loads(ceremonyhost.answer_request(plan, request, key("root key"), "file"))
    mallory = ec.generate_private_key(ec.SECP384R1())
    names = ceremonyhost._names(plan)
    above = forms.load_certificate(plan.root_certificate.encode())
    subject, public = "Casemate builder buildvm 1", rules.request_key(request)

    def certify(public: Any, signer: Any, above: Any, **more: Any) -> bytes:
        form = forms.certificate(names, subject, public, above, 100, **more)
        return strictjson.dumps({**good, "certificate": forms.pem(forms.sign(form, signer)).decode()})

    strange = forms.load_certificate(ceremonyhost.root_certificate("Example", mallory, development=True))
    return {
        "another key": certify(mallory.public_key(), key("root key"), above, path=0),
        "another root": certify(public, mallory, strange, path=0),
        "an authority over authorities": certify(public, key("root key"), above, path=1),
        "no authority": certify(public, key("root key"), above),
        "no list": strictjson.dumps({**good, "list": good["certificate"]}),
    }


def test_the_root_certifies_the_key_that_was_made_inside_and_no_other(open_one: Held) -> None:
    open_one.to_the_request()
    wrong = answers(open_one)
    for content in wrong.values():
        refused("CEREMONY-CONTENT", lambda content=content: open_one.visit.act("rita", key("rita"), "file", content))
    open_one.visit.certify("rita", key("rita"), key("root key"))


def test_somebody_with_another_key_than_the_roots_can_not_answer(open_one: Held) -> None:
    open_one.to_the_request()
    refused("CEREMONY-PERSONA", lambda: open_one.visit.certify("rita", key("rita"), key("mallory")))


def root_list(number: int, *serials: int) -> bytes:
    """A list that the root has made before."""
    above = forms.load_certificate(kit.root_pem())
    entries = [forms.revoked(serial, forms.moment(), "key-compromise") for serial in serials]
    return forms.pem(
        forms.revocation_list(above, number, entries, 30).sign(key("root key"), forms.algorithm_for(above.public_key()))  # type: ignore[arg-type]
    )


def test_what_the_root_has_revoked_before_stays_revoked(open_one: Held) -> None:
    open_one.to_the_request()
    open_one.visit.certify("rita", key("rita"), key("root key"), earlier=root_list(41, 4711))
    made = x509.load_pem_x509_crl(open_one.visit.look().certificate()[1])
    assert made.get_revoked_certificate_by_serial_number(4711) is not None
    assert made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 42


def test_a_root_that_says_nothing_of_its_lists_makes_no_real_one() -> None:
    real, plan = kit.plan(development=False), kit.plan()
    refused("CEREMONY-LIST", lambda: ceremonyhost.earlier_list(real, None))
    assert ceremonyhost.earlier_list(real, b"") == (0, []) == ceremonyhost.earlier_list(plan, None)
    for wrong in (b"none", kit.root_pem()):
        refused("CEREMONY-LIST", lambda wrong=wrong: ceremonyhost.earlier_list(plan, wrong))
    strange = ceremonyhost.root_certificate("Example", key("mallory"), development=True)
    refused(
        "CEREMONY-LIST", lambda: ceremonyhost.earlier_list(kit.plan(root_certificate=strange.decode()), root_list(1))
    )


def test_a_list_of_another_time_or_without_a_number_is_refused(open_one: Held) -> None:
    open_one.to_the_request()
    plan, request = open_one.service.plan, open_one.visit.wait("request").request()
    good = json.loads(ceremonyhost.answer_request(plan, request, key("root key"), "file"))
    above, now = forms.load_certificate(kit.root_pem()), forms.moment()
    form = x509.CertificateRevocationListBuilder().issuer_name(above.subject)
    for begins, ends, number in ((-9, -2, 1), (2, 9, 1), (-1, 9, None)):
        made = form.last_update(now + begins * forms.DAY).next_update(now + ends * forms.DAY)
        made = made if number is None else made.add_extension(x509.CRLNumber(number), critical=False)
        data = forms.pem(made.sign(key("root key"), forms.algorithm_for(key("root key").public_key())))
        content = strictjson.dumps({**good, "list": data.decode()})
        refused("CEREMONY-CONTENT", lambda content=content: open_one.visit.act("rita", key("rita"), "file", content))


# --- the transcript ---------------------------------------------------------------------------------------------


def changes(lines: list[bytes]) -> dict[str, list[bytes]]:
    """What can be done to a transcript, by name."""
    document = json.loads(lines[4])
    other = strictjson.dumps(
        {**document, "content": strictjson.b64(sessions.commitment(b"s" * 32, b"another share, after all"))}
    )
    later = strictjson.dumps({**json.loads(lines[1]), "time": "2031-01-01T00:00:00Z"})
    return {
        "changed": [*lines[:4], other, *lines[5:]],
        "another time": [lines[0], later, *lines[2:]],
        "removed": [*lines[:3], *lines[4:]],
        "reordered": [lines[0], lines[2], lines[1], *lines[3:]],
        "repeated": [*lines[:3], *lines[2:]],
        "more after the end": [*lines, lines[-1]],
        "another form": [lines[0].replace(b",", b", "), *lines[1:]],
    }


@pytest.mark.parametrize(
    "name", ["changed", "another time", "removed", "reordered", "repeated", "more after the end", "another form"]
)
def test_a_transcript_that_was_changed_is_refused(finished: tuple[Path, Any], name: str) -> None:
    directory, plan = finished
    lines = (directory / "transcript.jsonl").read_bytes().splitlines()
    found = report(directory, plan, transcript=b"".join(line + b"\n" for line in changes(lines)[name]))
    assert not found.holds
    assert "CEREMONY-" in next(one.why for one in found.checks if one.name == "transcript")


def test_a_transcript_that_was_cut_off_is_not_complete(finished: tuple[Path, Any]) -> None:
    directory, plan = finished
    lines = (directory / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        assert not report(directory, plan, transcript=b"".join(lines[:count])).holds
    assert not report(directory, plan, transcript=b"".join(lines)[:-1]).holds
    assert not report(directory, plan, head="0" * 64).holds


def test_a_machine_that_forks_its_transcript_is_noticed(open_one: Held) -> None:
    open_one.approve("alice")
    visit, ceremony = open_one.visit, open_one.service
    ceremony.ceremony = Ceremony(ceremony.plan, ceremony.ceremony.session, ceremony.ceremony.lines[:1])
    refused("CEREMONY-TRANSCRIPT", visit.look)


def test_an_image_that_was_swapped_on_its_way_out_is_noticed(
    finished: tuple[Path, Any], open_one: Held, tmp_path: Path
) -> None:
    open_one.to_the_image()
    open_one.service.result["casemate.img"] = b"another image".ljust(
        len(open_one.service.result["casemate.img"]), b"\0"
    )
    refused("CEREMONY-CONTENT", lambda: open_one.visit.witness("oscar", key("oscar"), tmp_path / "buildvm"))
    directory, plan = finished
    assert not report(directory, plan, files={"casemate.img": Part("0" * 64, 1)}).holds


def test_an_auditor_signs_the_head_and_nothing_older(open_one: Held) -> None:
    open_one.to_the_image()
    seen = open_one.visit.look()
    entry = kit.forge(seen.plan, seen.session, "oscar", b"", seen.lines[2].digest, key("oscar"))
    refused("CEREMONY-OTHER", lambda: open_one.visit._ask("POST", "/entry", 1 << 20, entry))


# --- impostors --------------------------------------------------------------------------------------------------


def impostor(change: Callable[[dict[str, bytes]], None], plan: Any) -> bytes:
    """What an impostor answers who has the genuine session to look at."""
    import base64

    made = kit.bootstrap(plan)
    said = {name: base64.b64decode(text) for name, text in json.loads(made.answer).items()}
    change(said)
    return strictjson.dumps({name: strictjson.b64(one) for name, one in said.items()})


def test_a_session_that_does_not_fit_its_record_or_plan_is_refused() -> None:
    plan = kit.plan()

    def other_record(said: dict[str, bytes]) -> None:
        said["record"] = said["record"].replace(b"a", b"b", 1)

    def no_record(said: dict[str, bytes]) -> None:
        said["record"] = b"\xff" * 100

    def other_start(said: dict[str, bytes]) -> None:
        said["record"] = kit.record(plan) + b"\nImage age: 3 days since creation."

    def more(said: dict[str, bytes]) -> None:
        said["signature"] = b"mine"

    for change in (other_record, no_record, other_start, more):
        refused("CEREMONY-SESSION", lambda change=change: sessions.open_session(impostor(change, plan), plan))


def test_an_impostor_is_not_the_bootstrap_vm(open_one: Held) -> None:
    """All of the image is public, and so anybody can say what its machine says. No ultravisor measures that for them."""
    plan = open_one.service.plan
    asked = open_one.visit._ask

    def relays(request: bytes, user_data: bytes) -> Any:
        """It asks the real machine, whose ultravisor measures the real machine's session."""
        from casemate.secureexec import attestation

        return attestation.unpack(asked("POST", "/measure", 1 << 20, attestation.pack_request(request)))

    other = kit.plan(organization="Mallory")
    for attest in (
        relays,
        kit.ultravisor(kit.header(plan), opened="mallory"),  # on the right host, with an image opened by another's key
        kit.ultravisor(kit.header(other)),  # a machine of another image on the right host, which says what it likes
    ):
        fake = kit.bootstrap(plan, attest=attest)
        fake.open()
        with service.serving(fake, "127.0.0.1", 0) as port:
            refused("CEREMONY-MEASUREMENT", kit.visit(port, plan).look)


def test_a_host_that_the_plan_does_not_name_can_not_answer() -> None:
    plan = kit.plan()
    fake = kit.bootstrap(plan, attest=kit.ultravisor(kit.header(plan), "mallory", "mallory"))
    fake.open()
    with service.serving(fake, "127.0.0.1", 0) as port:
        refused("CEREMONY-UNREACHABLE", kit.visit(port, plan).look)  # the request does not open there


def test_a_machine_that_begins_again_is_noticed(open_one: Held) -> None:
    open_one.approve("alice")
    again = kit.bootstrap(open_one.service.plan)
    again.open()
    with service.serving(again, "127.0.0.1", 0) as port:
        open_one.visit.address = f"127.0.0.1:{port}"
        refused("CEREMONY-MEASUREMENT", open_one.visit.look)


def test_an_ultravisor_that_does_not_answer_is_no_machine_of_the_platform() -> None:
    from casemate.guest.ultravisor import NoUltravisor

    def silent(request: bytes, user_data: bytes) -> Any:
        raise NoUltravisor("there is none")

    plan = kit.plan()
    fake = kit.bootstrap(plan, attest=silent)
    fake.open()
    with service.serving(fake, "127.0.0.1", 0) as port:
        refused("CEREMONY-MEASUREMENT", kit.visit(port, plan).look)
        for body in (b"x", b"pvattest" + bytes(90)):
            with pytest.raises(VisitError):
                kit.visit(port, plan)._ask("POST", "/measure", 4096, body)


def test_a_machine_with_another_plan_or_image_is_refused() -> None:
    plan = kit.plan()
    with held(kit.plan(nonce="1" * 32)) as other:
        refused("CEREMONY-SESSION", kit.visit(other.port, plan).look)
    with held(plan) as found:
        elsewhere = replace(plan, values={**plan.values, "baseimage": "f" * 64})
        refused("CEREMONY-SESSION", kit.visit(found.port, elsewhere).look)


def test_a_real_ceremony_is_not_held_on_a_development_machine() -> None:
    with pytest.raises(CeremonyError, match="development machine"):
        kit.bootstrap(kit.plan(development=False))


def test_who_replays_a_genuine_session_can_not_seal_a_line(open_one: Held) -> None:
    """An impostor shows what the real machine says and its measurements, and answers by itself: it lacks the session's key."""
    plan = open_one.service.plan
    fake = kit.bootstrap(plan)
    fake.answer, fake.measure = open_one.service.answer, open_one.service.measure  # type: ignore[method-assign]
    fake.open()
    with service.serving(fake, "127.0.0.1", 0) as port:
        refused("CEREMONY-TRANSCRIPT", kit.visit(port, plan).look)


def test_everybody_packs_the_same_image_of_a_plan_and_it_has_no_secret() -> None:
    from casemate.secureexec.image import open_image

    plan, images = kit.plan(), [io.BytesIO(), io.BytesIO()]
    for out in images:
        ceremonyhost.write_image(plan, FILES, out, kit.SECRET)
    refused("CEREMONY-SECRET", lambda: ceremonyhost.write_image(plan, FILES, io.BytesIO(), b"another secret"))
    assert images[0].getvalue() == images[1].getvalue()
    assert kit.header(plan) != kit.header(kit.plan(nonce="1" * 32))
    sinks: dict[str, io.BytesIO] = {}
    images[0].seek(0)
    open_image(images[0], kit.host_key("host"), lambda name, size: sinks.setdefault(name, io.BytesIO()))
    assert b"PRIVATE" not in sinks["initrd"].getvalue() and b"casemate/keys/" not in sinks["initrd"].getvalue()


# --- what the ultravisor said, later ----------------------------------------------------------------------------


def verdicts(found: ceremonyreport.Report) -> dict[str, str]:
    return {one.name: one.outcome.value for one in found.checks}


def test_the_measurement_is_what_an_auditor_is_shown_of_the_machine(finished: tuple[Path, Any]) -> None:
    directory, plan = finished
    good = report(directory, plan, header=kit.header(plan))
    assert good.holds and verdicts(good)["BootstrapVM"] == verdicts(good)["image of the BootstrapVM"] == "proved"
    assert {key.name: key.outcome.value for key in good.keys}["BootstrapVM: session (signing, sealing)"] == "proved"
    none = report(directory, plan, evidence=None)
    assert not none.holds and verdicts(none)["BootstrapVM"] == "not proved"
    inside = [key for key in none.keys if key.made == "inside the BootstrapVM"]
    assert len(inside) == 3 and all(key.outcome.value == "not proved" for key in inside)
    other = report(directory, plan, header=kit.header(kit.plan(nonce="1" * 32)))
    assert verdicts(other)["image of the BootstrapVM"] == "refuted"


def test_a_measurement_that_nobody_signed_shows_nothing(finished: tuple[Path, Any]) -> None:
    """Who asked has the key of the answer, and can make others: here with no machine at all, by the host's own key."""
    from casemate.secureexec import attestation

    directory, plan = finished
    session = sessions.open_session((directory / "session.json").read_bytes(), plan)
    request, secret = sessions.ask(plan)
    forged = kit.ultravisor(kit.header(plan))(attestation.unpack(request).request, session.user_data)
    mine = sessions.Evidence(kit.header(plan), attestation.pack_answer(forged), secret)
    assert sessions.measured(plan, session, mine) == "HKD.crt"  # by itself it holds
    assert verdicts(report(directory, plan, evidence=mine))["BootstrapVM"] == "not proved"


@pytest.mark.parametrize("part", ["header", "answer", "key"])
def test_evidence_that_was_changed_is_refused(finished: tuple[Path, Any], part: str) -> None:
    directory, plan = finished
    kept = evidence(directory)
    data = bytearray(getattr(kept, part))
    for at in (0, len(data) // 2, len(data) - 1):
        changed = bytes(data[:at]) + bytes([data[at] ^ 1]) + bytes(data[at + 1 :])
        found = report(directory, plan, evidence=replace(kept, **{part: changed}))
        assert verdicts(found)["BootstrapVM"] in ("refuted", "not proved") and not found.holds


def test_a_plan_that_came_with_the_files_proves_nothing(finished: tuple[Path, Any]) -> None:
    """Whoever has a genuine image of a BuildVM could write a plan of their own people around it."""
    directory, plan = finished
    assert verdicts(report(directory, plan, known=None))["plan"] == "not proved"
    other = report(directory, plan, known=kit.plan(nonce="1" * 32).digest)
    assert verdicts(other)["plan"] == "refuted" and not other.holds
    files = {path.name: Part(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
             for path in (directory / "buildvm").iterdir()}  # fmt: skip
    for name in ("reviewers.json", "intermediate.crt", "root.crt", "root.crl.pem"):
        wrong = report(directory, plan, files={**files, name: Part("0" * 64, 1)})
        assert verdicts(wrong)["BuildVM image"] == "refuted"


def test_hosts_that_the_plan_does_not_name_get_no_buildvm(open_one: Held) -> None:
    """Nobody gives a key of their own, under whatever name: reviewers have approved the plan's hosts."""
    open_one.approve("alice", "bob")
    for hosts in ([("HKD.crt", kit.host("mallory"))], [("HKD.crt", kit.host()), ("HKD-2.crt", kit.host("mallory"))]):
        refused("CEREMONY-CONTENT", lambda hosts=hosts: open_one.visit.give_hosts("heidi", key("heidi"), hosts))
    open_one.visit.give_hosts("heidi", key("heidi"), [("HKD.crt", kit.host())])


def test_a_development_ceremony_is_one_whatever_its_record_says(finished: tuple[Path, Any]) -> None:
    directory, plan = finished
    found = report(directory, plan)
    assert plan.development and found.development and "DEVELOPMENT" in found.summary()


def test_a_real_ceremony_with_lasting_keys_in_files_is_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "TEE", "IBM Secure Execution")
    for custody, verdict in (("file", "not proved"), ("token", "proved")):
        with held(kit.plan(development=False)) as found:
            found.custody = custody
            found.to_the_end(tmp_path / custody)
        made = report(tmp_path / custody, found.service.plan)
        assert verdicts(made)["keys"] == verdict and made.holds is (custody == "token"), made.as_dict()
        assert not any("never leaves" in one.lives for one in made.keys)


def test_the_hosts_of_a_real_plan_must_be_verified_ones() -> None:
    real, mine = kit.plan(development=False), [("HKD.crt", kit.host())]
    refused("CEREMONY-HOSTS", lambda: ceremonyhost.check_hosts(real, None))
    refused("CEREMONY-HOSTS", lambda: ceremonyhost.check_hosts(real, []))
    refused("CEREMONY-HOSTS", lambda: ceremonyhost.check_hosts(kit.plan(), [("HKD.crt", kit.host("mallory"))]))
    ceremonyhost.check_hosts(real, mine)
    ceremonyhost.check_hosts(kit.plan(), None)


def test_the_order_of_hosts_in_a_file_makes_no_other_image() -> None:
    two = {"b.crt": kit.host("b").decode(), "a.crt": kit.host().decode()}
    document = json.loads(kit.plan(hosts=two).as_bytes())
    turned = json.dumps(document | {"hosts": dict(reversed(document["hosts"].items()))}).encode()
    assert kit.header(plans.parse_plan(turned)) == kit.header(plans.parse_plan(json.dumps(document).encode()))


@pytest.mark.parametrize("name", ["organization", "hosts", "root_certificate", "pipeline"])
def test_half_a_character_is_no_text_of_a_plan(name: str) -> None:
    document = json.loads(_PLAN)
    document[name] = {"HKD.crt": "\ud800"} if name == "hosts" else "\ud800"
    refused("CEREMONY-PLAN", lambda: plans.parse_plan(json.dumps(document).encode()))


def another_image(found: Held, who: str, header: str = "0" * 64) -> bytes:
    """What a reviewer sends who has packed another image."""
    seen = found.visit.look()
    content = rules.next_key(seen.session, who, key(f"{who}'s next"), "file")
    return kit.forge(seen.plan, seen.session, who, content, seen.head, key(who), header=header)


def test_one_reviewer_who_signs_another_image_first_stops_nobody(open_one: Held, tmp_path: Path) -> None:
    open_one.visit._ask("POST", "/entry", 1 << 20, another_image(open_one, "carol"))
    open_one.approve("alice")
    seen = open_one.visit.look()
    assert not seen.enough("reviewers") and seen.missing()[0] == rules.Missing("reviewers", 1, ("bob",), True)
    open_one.approve("bob")
    open_one.on_to_the_request()
    open_one.on_to_the_image()
    open_one.visit.witness("oscar", key("oscar"), tmp_path / "buildvm")
    open_one.service.step()
    open_one.visit.save(tmp_path)
    found = report(tmp_path, open_one.service.plan)
    assert found.holds, found.as_dict()
    assert "carol signed another image" in next(one.why for one in found.checks if one.name == "BootstrapVM")
    who = approval.parse_reviewers((tmp_path / "buildvm/reviewers.json").read_bytes())
    assert set(who.keys) == {"alice", "bob"} and not any(one.name.startswith("carol: approves") for one in found.keys)


def test_who_signs_another_image_than_enough_reviewers_is_refused(open_one: Held) -> None:
    open_one.approve("alice", "bob")
    seen, entry = open_one.visit.look(), another_image(open_one, "carol")
    refused("CEREMONY-IMAGE", lambda: open_one.visit._ask("POST", "/entry", 1 << 20, entry))
    assert open_one.visit.look().lines == seen.lines


def test_reviewers_who_each_sign_another_image_are_not_enough(open_one: Held) -> None:
    for who, header in (("alice", "0"), ("bob", "1"), ("carol", "2")):
        open_one.visit._ask("POST", "/entry", 1 << 20, another_image(open_one, who, header * 64))
    seen = open_one.visit.look()
    assert not seen.enough("reviewers") and seen.missing()[0].count == 1 and not seen.missing()[0].names
    refused("CEREMONY-ORDER", lambda: open_one.visit.give_hosts("heidi", key("heidi"), [("HKD.crt", kit.host())]))


def test_enough_reviewers_of_another_image_than_was_measured_refute_it(open_one: Held) -> None:
    visit = open_one.visit
    for who in ("alice", "bob"):
        visit._ask("POST", "/entry", 1 << 20, another_image(open_one, who))
    seen = visit.look()
    found = ceremonyreport.verify(seen.plan, visit.answer, seen.as_bytes(), evidence=visit.evidence)
    assert verdicts(found)["BootstrapVM"] == "refuted"
    assert "alice, bob" in next(one.why for one in found.checks if one.name == "BootstrapVM")


def test_what_comes_after_the_plans_minutes_is_no_line() -> None:
    """The machine closes by a clock of its own; the auditor reads it off the lines' times."""
    clock = kit.Clock()
    with kit.held(kit.plan(minutes=1), clock) as one:
        one.approve("alice")
        clock.ahead = 180.0
        refused("CEREMONY-TIME", lambda: one.approve("bob"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("organization", "Example\nBank"),
        ("organization", " "),
        ("builder", "a.b"),
        ("root_certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("development", False),
    ],
)
def test_a_plan_with_what_no_certificate_can_say_is_refused(name: str, value: Any) -> None:
    document = json.loads(_PLAN) | {name: value}
    refused("CEREMONY-PLAN", lambda: plans.parse_plan(json.dumps(document).encode()))


@pytest.mark.parametrize("address", ["x:²", "x:99999999", "a\nb:80", "x" * 70 + ".é:80", "nothing", "[::1:80"])
def test_an_address_that_can_not_be_is_told_so(address: str) -> None:
    refused("CEREMONY-UNREACHABLE", ceremonyhost.Visit(address, kit.plan(), b"").look)


# --- the port ---------------------------------------------------------------------------------------------------


def test_what_is_too_large_or_no_part_is_refused(open_one: Held) -> None:
    for method, path, body in (
        ("POST", "/entry", b"x" * (service.LARGEST_BODY + 1)),
        ("PUT", "/parts/kernel", FILES["kernel"] + b"x"),
        ("PUT", "/parts/kernel", b"y" * len(FILES["kernel"])),
        ("PUT", "/parts/other", b"z"),
        ("POST", "/entry", b"{}"),
        ("POST", "/elsewhere", b"{}"),
    ):
        with pytest.raises(VisitError):
            open_one.visit._ask(method, path, 4096, body)
    assert open_one.visit.look().lines and not open_one.service.parts


def test_slow_and_broken_connections_do_not_stop_a_ceremony(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "DEADLINE", 1.5)
    monkeypatch.setattr(service, "MOST_CONNECTIONS", 4)
    with held() as found:
        began, slow = time.monotonic(), []
        for _ in range(6):
            connection = socket.create_connection(("127.0.0.1", found.port), 5)
            connection.sendall(b"POST /entry HTTP/1.0\r\nContent-Length: 100\r\n\r\n")
            slow.append(connection)
        garbage = socket.create_connection(("127.0.0.1", found.port), 5)
        garbage.sendall(b"\0\xff" * 40000)
        garbage.close()
        while True:  # a byte now and then does not make the connection last
            try:
                for connection in slow:
                    connection.sendall(b"x")
                    time.sleep(0.2)
            except OSError:
                break
            assert time.monotonic() - began < 20
        for connection in slow:
            connection.close()
        time.sleep(0.5)
        found.approve("alice")


def test_a_part_whose_values_are_not_the_plans_stops_the_machine(open_one: Held) -> None:
    open_one.to_the_request()
    open_one.visit.certify("rita", key("rita"), key("root key"))
    open_one.service.parts = {**FILES, "kernel": b"another kernel, somehow"}
    with pytest.raises(Stop):
        open_one.service.step()


def test_the_image_that_comes_out_opens_for_the_hosts_that_were_given(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from casemate.secureexec.image import open_image

    host = ec.generate_private_key(ec.SECP521R1())
    document = host.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with held(kit.plan(hosts={"HKD.crt": kit.host().decode(), "mine.crt": document.decode()})) as found:
        found.approve("alice", "bob")
        found.on_to_the_request((("mine.crt", document),))
        found.on_to_the_image()
        sinks: dict[str, io.BytesIO] = {}
        contents = open_image(
            io.BytesIO(found.service.result["casemate.img"]),
            host,
            lambda name, size: sinks.setdefault(name, io.BytesIO()),
        )
        initrd = sinks["initrd"].getvalue()[: contents.sizes["initrd"]]
    names = (b"keys/intermediate.pem", b"keys/attestation.pem", b"keys/state.key", b"public/reviewers.json")
    for name in (*names, b"public/pipeline.pem", kit.pem(key("pipeline")).encode()):
        assert name in initrd
    assert b'"kind": "builder"' in initrd


def test_one_private_key_is_not_two_people() -> None:
    """Q and -Q are two public keys of one private number, but for its sign."""
    from cryptography.hazmat.primitives.asymmetric import ec

    order = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)
    other = ec.derive_private_key(order - key("alice").private_numbers().private_value, ec.SECP384R1())
    document = json.loads(_PLAN)
    document["personas"]["bob"] = kit.pem(other)
    assert document["personas"]["bob"] != document["personas"]["alice"]
    refused("CEREMONY-PLAN", lambda: plans.parse_plan(json.dumps(document).encode()))
