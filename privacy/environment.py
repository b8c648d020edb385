"""What every process sets before Flower or Ray is imported: no telemetry, no update checks."""

import os
import tempfile

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare(home: str | None = None) -> None:
    """Quieten the libraries and give Flower a folder of its own, unless the user chose one."""
    os.environ.update(_QUIET)
    if "FLWR_HOME" not in os.environ:
        os.environ["FLWR_HOME"] = home or os.path.join(  # noqa: PTH118 - before anything is imported
            tempfile.gettempdir(), f"tacit-flwr-{os.getuid()}"
        )
