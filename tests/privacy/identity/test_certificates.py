"""Keys, requests, certificates and signatures."""

import base64
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.identity import certificates, keys
from privacy.identity.certificates import Authority, Certificate
from privacy.identity.keys import IdentityError

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
KEY, SIGNING = keys.new_key(), keys.new_signing_key()
CA = Authority.create("tacit", NOW)


def test_a_certificate_binds_the_site_to_both_its_keys() -> None:
    wish = certificates.read_request(certificates.request("ward-3", KEY, SIGNING))
    pem = CA.issue(wish, NOW)
    found = Certificate.read(pem)
    assert found.name == "ward-3"
    assert found.key == keys.public_of(KEY)
    assert found.signing == keys.signing_public(SIGNING)
    assert certificates.issued_by(pem, CA.certificate)


def test_another_authority_did_not_issue_it() -> None:
    wish = certificates.read_request(certificates.request("a", KEY, SIGNING))
    assert not certificates.issued_by(
        CA.issue(wish, NOW), Authority.create("tacit", NOW).certificate
    )


def test_a_request_with_a_borrowed_signing_key_is_refused() -> None:
    mine = certificates.request("a", KEY, SIGNING)
    other = certificates.request("a", keys.new_key(), SIGNING)
    assert certificates.read_request(mine).signing == certificates.read_request(other).signing
    forged = _with_extension_of(other)
    with pytest.raises(IdentityError, match="signing key"):
        certificates.read_request(forged)


def _with_extension_of(stolen: bytes) -> bytes:
    """A request by another TLS key that carries someone else's proof."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    found = x509.load_pem_x509_csr(stolen)
    builder = x509.CertificateSigningRequestBuilder().subject_name(found.subject)
    for extension in found.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    private = keys.private_key(keys.new_key())
    return builder.sign(private, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


@given(st.integers(0, 600))
def test_a_request_changed_anywhere_is_refused_or_says_the_same(at: int) -> None:
    pem = bytearray(certificates.request("a", KEY, SIGNING))
    pem[at % len(pem)] ^= 1
    try:
        wish = certificates.read_request(bytes(pem))
    except IdentityError:
        return
    assert (wish.site, wish.key) == ("a", keys.public_of(KEY))


@given(st.text(max_size=70))
def test_a_site_is_named_in_plain_letters_or_not_at_all(name: str) -> None:
    try:
        assert keys.check_name(name) == name
    except IdentityError:
        return
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith(".")


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_signature_holds_for_its_payload_alone(payload: bytes, other: bytes) -> None:
    signature = keys.sign(SIGNING, payload)
    public = keys.signing_public(SIGNING)
    assert keys.verify(public, payload, signature)
    assert keys.verify(public, other, signature) == (other == payload)
    assert not keys.verify(public, payload, signature[:-1])
    assert not keys.verify("00", payload, signature)


def test_a_certificate_ages_from_early_over_good_and_soon_to_expired() -> None:
    wish = certificates.read_request(certificates.request("a", KEY, SIGNING))
    found = Certificate.read(CA.issue(wish, NOW, days=100))
    days = {-1: "early", 1: "good", 71: "soon", 101: "expired"}
    for day, expected in days.items():
        assert found.age(NOW + datetime.timedelta(days=day)) == expected


def test_a_server_is_known_by_its_names_and_addresses() -> None:
    found = Certificate.read(CA.issue_server(KEY, ["localhost", "127.0.0.1", "::1"], NOW))
    assert found.hosts == ("localhost", "127.0.0.1", "::1")
    assert found.signing == ""


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Certificate.read(data)
    with pytest.raises(IdentityError):
        certificates.read_request(data)
    with pytest.raises(IdentityError):
        keys.public_of(data)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42"), (b"\x55\x1d\x0f", b"\x55\x1d\x13")],
    ids=["version", "an extension twice"],
)
def test_a_changed_certificate_is_one_line_from_every_reader(before: bytes, after: bytes) -> None:
    """The library's errors for these are no ValueError."""
    authority = Authority.create("a", NOW)
    pem = authority.issue_server(keys.new_key(), ["127.0.0.1"], NOW)
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    assert before in der
    changed = der.replace(before, after, 1)
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed)
    text += b"-----END CERTIFICATE-----\n"
    with pytest.raises(IdentityError):
        Certificate.read(changed)
    with pytest.raises(IdentityError):
        Certificate.read(text)
    assert not certificates.issued_by(text, authority.certificate)
    assert not certificates.issued_by(pem, text)
