"""What can be made again of a coordinator's folder from what is left of it, and nothing else.

A certificate follows from its key: the authority's from `ca.key`, the coordinator's own from the
authority. Keys, the list of sites and the heads follow from nothing: they come from a backup.
"""

import datetime
from pathlib import Path

from privacy.files import PRIVATE, write_atomic
from privacy.identity.certificates import Authority, issued_by
from privacy.identity.keys import IdentityError
from server.registry.authority import renew_server
from server.registry.sites import AUTHORITY_NAME, Home, MembersError


def repair(folder: Path, now: datetime.datetime) -> list[str]:
    """Make `ca.pem` and `server.pem` again where they are missing; the names of what was made.

    MembersError, and nothing changed, where a key is missing, or where the authority's key is not
    the one that signed the certificates that are there.
    """
    home = Home(folder).check()
    keys = (home.ca_key, home.key, home.signing_key, home.sites)
    lost = [path.name for path in keys if not path.is_file()]
    if lost:
        raise MembersError(
            f"--dir {folder}: {', '.join(lost)} cannot be made again, nothing was changed "
            "(restore a whole backup into an empty folder: tacit-server restore FILE)"
        )
    names = []
    if not home.ca.is_file():
        write_atomic(home.ca, _authority(home, now), mode=PRIVATE)
        names.append(home.ca.name)
    if not home.certificate.is_file():
        renew_server(folder, [], now)
        names.append(home.certificate.name)
    return names


def _authority(home: Home, now: datetime.datetime) -> bytes:
    """The authority's certificate, if its key signed what the federation shows; MembersError."""
    try:
        again = Authority.with_key(AUTHORITY_NAME, home.ca_key.read_bytes(), now).certificate
    except IdentityError as error:
        raise MembersError(f"{home.ca_key}: {error}") from None
    shown = [member.pem.encode() for member in home.members().sites.values()]
    if home.certificate.is_file():
        shown.append(home.certificate.read_bytes())
    following = home.next_ca.read_bytes() if home.next_ca.is_file() else b""
    if not all(issued_by(pem, again + following) for pem in shown):
        raise MembersError(
            f"{home.ca_key}: is not the key that signed this federation's certificates, nothing "
            "was changed (restore a whole backup into an empty folder: tacit-server restore FILE)"
        )
    return again
