"""A real PostgreSQL of the tests' own, on a free port of 127.0.0.1."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def served() -> Iterator[tuple[str, str]]:
    """A real server of its own, on a free port: its address, and the password."""
    pytest.importorskip("adbc_driver_postgresql", reason="needs the extra tacit[sql]")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = Path(shutil.which("initdb") or "").parent if shutil.which("initdb") else None
    programs = places[-1] if places else programs
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="tacit-pg-") as folder:
        Path(folder, "pw").write_text("geheim !%\n")
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and setpriv is missing")
            Path(folder).chmod(0o755)  # the server's user has to reach its own folder
            shutil.chown(folder, "postgres")
            shutil.chown(Path(folder, "pw"), "postgres")
            become = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        else:
            become = []

        def ask(name: str, *arguments: str) -> None:
            command = [*become, str(programs / name), *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)

        data = str(Path(folder, "data"))
        ask("initdb", "-D", data, "-U", "me", "--pwfile", f"{folder}/pw", "-A", "scram-sha-256",
            "--no-sync")  # fmt: skip
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        ask("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://me@127.0.0.1:{port}/postgres", "geheim !%"
        finally:
            ask("pg_ctl", "-D", data, "-m", "immediate", "stop")


def fill(address: str, password: str, sql: str) -> None:
    """Write as the owner would, through another program."""
    environment = os.environ | {"PGPASSWORD": password}
    subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", address, "-c", sql], check=True,
                   env=environment, capture_output=True)  # fmt: skip
