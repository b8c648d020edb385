"""What `backup` and `restore` of every role do: one private archive of a whole folder."""

from collections.abc import Sequence
from pathlib import Path

from privacy.audit_trail import record
from privacy.commands.options import passphrase_of


def packed(
    directory: Path,
    file: Path,
    *,
    kind: str,
    without: Sequence[str],
    ask: bool,
    passphrase_file: Path | None,
    unencrypted: str,
) -> str:
    """Write the folder into `file`, noted in its audit log; what to tell of it.

    `unencrypted` says what an archive without a passphrase gives away. ArchiveError.
    """
    from privacy.archive import backup, check_target

    check_target(directory, file)
    passphrase = passphrase_of(ask, passphrase_file, confirm=True)
    record(directory, "backup", str(file))
    manifest = backup(directory, file, kind=kind, without=tuple(without), passphrase=passphrase)
    return f"{len(manifest['files'])} files; {'encrypted' if passphrase else unencrypted}"


def unpacked(
    file: Path, directory: Path, *, kind: str, ask: bool, passphrase_file: Path | None
) -> int:
    """Unpack an archive into an empty folder; how many files it held. ArchiveError."""
    from privacy.archive import restore

    passphrase = passphrase_of(ask, passphrase_file, confirm=False)
    return len(restore(file, directory, kind=kind, passphrase=passphrase)["files"])
