"""The ClientApp of the app bundle: a site under stock Flower, a new process for every message.

The owner names the site's folder where the SuperNode is started: `--node-config 'dir="DIR"
data="PATH"'`. Policy, ledger and stored replies are those of `tacit-client run`. But this very code
came from the coordinator: it keeps a site's rules as far as the coordinator is honest
(docs/stock-flower.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from client.agent import process
from client.agent.credentials import Enrolled
from client.app import make_app
from client.data.site_rows import Source
from client.release import Public, release
from client.reply import REPLY
from client.round_request import REQUEST
from client.site import Site, SiteError
from privacy.event_log import EventLog

BUNDLE = Path(__file__).parent.parent
_log = EventLog(as_json=False)


def site_of(context: Context) -> Site:
    """The site whose folder the SuperNode's operator named."""
    source = Source.parse(_text(context, "data"))
    policy, population = _text(context, "policy", ""), _text(context, "population", "")
    return process.resident(
        _enrolled(context),
        source,
        _log,
        policy=Path(policy) if policy else None,
        population=population or None,
        where=_text(context, "device", "auto"),
        look=False,  # a message opens this site: what its rows look like must not show
    )


def guarded(message: Message, context: Context, handle: ClientAppCallable) -> Message:
    """Hold the site's folder while a message is handled; what goes wrong leaves as a code.

    Stock Flower would send an exception's text to the coordinator.
    """
    _log("stock_flower", bundle=BUNDLE, note="this code came from the coordinator")
    try:
        with process.alone(_enrolled(context).folder):
            return handle(message, context)
    except (ValueError, OSError) as error:  # the texts that `tacit-client run` ends with
        _log("failed", problem=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - its text may hold a row: only its name is told
        _log("failed", error=type(error).__name__)
    return Message(_failed(message), reply_to=message)


def _enrolled(context: Context) -> Enrolled:
    return Enrolled(Path(_text(context, "dir"))).joined()


def _text(context: Context, key: str, default: str | None = None) -> str:
    value: Any = context.node_config.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise SiteError(
            f"node-config {key}: expected a text (flower-supernode --node-config "
            '\'dir="DIR" data="PATH"\')'
        )
    return value


def _failed(message: Message) -> RecordDict:
    """The refusal of a site that could not be opened, which has no name yet."""
    request: Mapping[str, Any] = {}
    if not message.has_error():
        request = message.content.config_records.get(REQUEST) or {}
    run, number = request.get("run"), request.get("round")
    fields = {
        "run": Public(run if isinstance(run, str) else ""),
        "round": Public(number if isinstance(number, int) else 0),
        "site": Public(""),
        "status": Public("failed"),
        "reason": Public("failed"),
    }
    return RecordDict({REPLY: ConfigRecord(release(fields, ledger=None, trust_coordinator=False))})


app = make_app(lambda context, content: site_of(context), [guarded])
