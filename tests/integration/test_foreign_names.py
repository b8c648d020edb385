"""Contract tests of the private names that we use of Flower, torch, dp_accounting, opacus.

Libraries may change these without a word. Each name is listed with the shape in which we use it;
a name that the code uses and this table lacks, or the other way round, fails.
"""

import datetime
import inspect
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from dp_accounting import GaussianDpEvent, rdp
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import MixtureGaussianPrivacyLoss
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.fleet_http_client import FleetHttpClient
from opacus.grad_sample import GradSampleModule
from torch import nn

from tests.support.foreign_names import private_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "client", "server", "simulations")
Shape = tuple[str, ...] | type | set[str]

SHAPES: dict[str, Shape] = {
    # a tuple: the first parameters of a call; a set: attributes; a type: the value's
    "flwr.app.message.remove_content_from_message": ("message",),
    "flwr.clientapp.typing.ClientAppCallable": object,
    "flwr.clientapp.typing.Mod": object,
    "flwr.common.constant.ErrorCode": {"CLIENT_APP_RAISED_EXCEPTION"},
    "flwr.common.constant.NOOP_ACCOUNT_NAME": str,
    "flwr.common.constant.NOOP_FLWR_AID": str,
    "flwr.common.constant.SUPERLINK_NODE_ID": int,
    "flwr.common.constant.SubStatus": {"COMPLETED"},
    "flwr.common.constant.TIMESTAMP_HEADER": str,
    "flwr.common.serde.message_from_proto": ("message_proto",),
    "flwr.common.serde.message_to_proto": ("message",),
    "flwr.proto.fleet_pb2": {
        "ActivateNodeRequest",
        "DeactivateNodeRequest",
        "PullMessagesRequest",
        "PushMessagesRequest",
        "PushMessagesResponse",
    },
    "flwr.proto.heartbeat_pb2": {"SendNodeHeartbeatRequest"},
    "flwr.proto.message_pb2": {
        "ConfirmMessageReceivedRequest",
        "ConfirmMessageReceivedResponse",
        "PullObjectRequest",
        "PullObjectResponse",
        "PushObjectRequest",
        "PushObjectResponse",
    },
    "flwr.proto.node_pb2": {"Node"},
    "flwr.server.superlink.linkstate.LinkStateFactory": (
        "database",
        "federation_manager",
        "objectstore_factory",
    ),
    "flwr.supercore.constant.FLEET_HTTP_PUBLIC_KEY_HEADER": str,
    "flwr.supercore.constant.FLEET_HTTP_SIGNATURE_HEADER": str,
    "flwr.supercore.constant.FLWR_IN_MEMORY_DB_NAME": str,
    "flwr.supercore.constant.NOOP_FEDERATION_ID": str,
    "flwr.supercore.constant.TaskType": {"SERVER_APP"},
    "flwr.supercore.error.FlowerError": {"code"},
    "flwr.supercore.inflatable.inflatable_object.get_all_nested_objects": ("obj",),
    "flwr.supercore.inflatable.inflatable_object.get_object_tree": ("obj",),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": ("tree",),
    "flwr.supercore.inflatable.inflatable_object.no_object_id_recompute": (),
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": (
        "object_id",
        "object_contents",
        "keep_object_contents",
        "objects",
    ),
    "flwr.supercore.object_store.ObjectStoreFactory": ("database",),
    "flwr.supercore.primitives.asymmetric.public_key_to_bytes": ("public_key",),
    "flwr.supercore.run.Run": {"primary_task_id"},
    "flwr.supercore.task_identity.TaskIdentity": {"task_id", "run_id", "node_id"},
    "flwr.superlink.federation.NoOpFederationManager": (),
    "flwr.superlink.servicer.fleet.fleet_handlers": {
        "activate_node",
        "deactivate_node",
        "pull_messages",
        "pull_object",
        "push_messages",
        "push_object",
        "send_node_heartbeat",
    },
    "flwr.supernode.fleet_http_client.FleetHttpClient": {
        "ActivateNode",
        "DeactivateNode",
        "PullMessages",
        "PullObject",
        "PushMessages",
        "PushObject",
        "SendNodeHeartbeat",
        "close",
    },
    "flwr.supernode.node_auth_http_interceptor.NodeAuthHttpInterceptor": ("private_key",),
    "opacus.layers.dp_rnn.DPGRUCell": {"forward"},
    "opacus.layers.dp_rnn.DPLSTMCell": {"forward"},
    "opacus.layers.dp_rnn.DPRNNBase": {"forward", "forward_layer"},
    "opacus.layers.dp_rnn.DPRNNCell": {"forward"},
    "opacus.layers.dp_rnn.RNNLinear": {"forward"},
    "torch.utils._pytree": {"tree_leaves", "tree_map"},
}
ATTRIBUTES: dict[str, Callable[[], object]] = {}


def contract(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Register the contract of an attribute."""

    def register(check: Callable[[], object]) -> Callable[[], object]:
        ATTRIBUTES[name] = check
        return check

    return register


def _message() -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    weights = ArrayRecord({"w": Array("uint8", (1,), "numpy", b"\\0")})
    return Message(RecordDict({"arrays": weights}), dst_node_id=1, message_type="train")


@contract("._message_id")
def _messages_id() -> None:
    message = _message()
    message.metadata.__dict__["_message_id"] = "7"
    assert message.metadata.message_id == "7"


@contract("._run_id")
def _messages_run() -> None:
    message = _message()
    message.metadata.__dict__.update(_run_id=3)
    assert message.metadata.run_id == 3


@contract("._src_node_id")
def _messages_sender() -> None:
    message = _message()
    message.metadata.__dict__.update(_src_node_id=5)
    assert message.metadata.src_node_id == 5


@contract("._src_task_id")
def _messages_task() -> None:
    assert "_src_task_id" in _message().metadata.__dict__


@contract("._client")
def _the_http_client_of_a_fleet_client() -> None:
    client = FleetHttpClient("http://127.0.0.1:1")
    assert isinstance(client._client, httpx.Client)
    client.close()
    assert client._client.is_closed


@contract("._lock_object_push_sessions")
def _the_lock_of_the_uploads() -> None:
    name = FLWR_IN_MEMORY_DB_NAME
    state: Any = LinkStateFactory(name, NoOpFederationManager(), ObjectStoreFactory(name)).state()
    with state._lock_object_push_sessions:
        state.object_store.delete("nothing")
    assert isinstance(state._lock_object_push_sessions, type(threading.RLock()))
    used = ("message_ins_store", "message_res_store", "message_ins_id_to_message_res_id")
    assert all(isinstance(getattr(state, one), dict) for one in used)
    calls = ("create_run", "claim_task", "activate_task", "create_node", "deactivate_node")
    more = ("start_session", "store_message_and_object_tree", "store_object", "delete_messages")
    last = ("get_run_info", "finish_task", "acknowledge_task_heartbeat")
    assert all(callable(getattr(state, one)) for one in (*calls, *more, *last))


@contract("._cleanup_push_session")
@contract("._object_push_sessions")
def _the_uploads_have_an_end_that_can_be_moved() -> None:
    name = FLWR_IN_MEMORY_DB_NAME
    state: Any = LinkStateFactory(name, NoOpFederationManager(), ObjectStoreFactory(name)).state()
    session = state.start_session(1)
    assert state._object_push_sessions[session].expires_at.tzinfo is not None
    state._object_push_sessions[session].expires_at = datetime.datetime.max
    state._cleanup_push_session(session, cleanup_messages=False)
    assert state._object_push_sessions == {}


@contract("._unary_unary")
def _a_call_of_another_path_is_made_as_flowers_own_are() -> None:
    wanted = {"path", "rpc_method", "request", "response_type"}
    assert wanted <= set(inspect.signature(FleetHttpClient._unary_unary).parameters)


@contract("._check_stored_messages")
def _messages_whose_time_is_over_are_forgotten() -> None:
    name = FLWR_IN_MEMORY_DB_NAME
    state: Any = LinkStateFactory(name, NoOpFederationManager(), ObjectStoreFactory(name)).state()
    assert next(iter(inspect.signature(state._check_stored_messages).parameters)) == "message_ids"
    state._check_stored_messages({"none"})


@contract("._module")
def _the_wrapped_model_of_opacus() -> None:
    layer = nn.Linear(2, 1)
    assert GradSampleModule(layer)._module is layer


@contract("._rdp")
def _the_orders_of_an_rdp_accountant() -> None:
    accountant = rdp.RdpAccountant([2.0, 4.0])
    accountant.compose(GaussianDpEvent(2.0))
    assert accountant._rdp.tolist() == pytest.approx([2 / 8, 4 / 8])


@contract("._create_pld_pmf_from_monotone_privacy_loss")
@contract("._precompute_privacy_loss_constants")
@contract("._variance")
def _the_loss_of_a_mixture_of_gaussians() -> None:
    """That the numbers are the library's: tests/privacy/accounting/test_mixtures.py."""
    loss = MixtureGaussianPrivacyLoss(2.0, [0.0, 1.0], [0.5, 0.5])
    assert loss._variance == 4.0
    assert loss._precompute_privacy_loss_constants.shape == (2,)
    words = inspect.signature(pld._create_pld_pmf_from_monotone_privacy_loss).parameters
    assert {"value_discretization_interval", "use_connect_dots"} <= set(words)
    words = inspect.signature(loss._inverse_privacy_losses_with_range).parameters
    assert list(words) == ["privacy_losses", "bounds", "precision"]


@contract("._discretization")
@contract("._infinity_mass")
@contract("._lower_loss")
@contract("._pmf_add")
@contract("._pmf_remove")
@contract("._probs")
@contract("._symmetric")
def _the_distribution_of_a_gaussians_losses() -> None:
    """That the numbers are the library's: tests/privacy/accounting/test_vectorised.py."""
    losses = pld.from_gaussian_mechanism(1.0, sampling_prob=0.5, value_discretization_interval=0.5)
    assert not losses._symmetric
    for side in (losses._pmf_remove, losses._pmf_add):
        dense = side.to_dense_pmf()
        assert dense._discretization == 0.5
        assert dense._lower_loss == int(dense._lower_loss)
        assert dense._probs.sum() + dense._infinity_mass == pytest.approx(1)


@contract("._version")
def _a_tensor_counts_what_is_written_into_it() -> None:
    x = torch.zeros(2)
    before = x._version
    x.mul_(2)
    assert x._version == before + 1


@contract("._reversed_padding_repeated_twice")
def _the_padding_of_a_convolution() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=(1, 2), padding_mode="circular")
    assert list(layer._reversed_padding_repeated_twice) == [2, 2, 1, 1]


def test_every_private_name_that_the_code_uses_is_in_the_table_and_no_other() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert private_names(files) == {*SHAPES, *ATTRIBUTES}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_private_name_has_the_shape_in_which_it_is_used(name: str) -> None:
    module, _, last = name.rpartition(".")
    try:
        found: Any = import_module(name)
    except ModuleNotFoundError:
        found = getattr(import_module(module), last)
    shape = SHAPES[name]
    if isinstance(shape, tuple):
        parameters = [one for one in inspect.signature(found).parameters if one != "self"]
        assert tuple(parameters[: len(shape)]) == shape
    elif isinstance(shape, set):
        assert not {one for one in shape if one not in _attributes(found)}
    else:
        assert isinstance(found, shape)


def _attributes(of: Any) -> set[str]:
    """Also those that a metaclass or an instance has."""
    own = {*dir(of), *dir(type(of)), *getattr(of, "__annotations__", ())}
    start = getattr(getattr(of, "__init__", None), "__code__", None)
    return own | set(start.co_names if start else ())


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_private_attribute_is_what_we_take_it_for(name: str) -> None:
    ATTRIBUTES[name]()


def test_an_error_has_a_code_and_a_reason() -> None:
    assert (Error(1, "why").code, Error(1, "why").reason) == (1, "why")
