"""The attack for the reader's intuition tells members of a plain model, hardly of a private one."""

from client.audit.audit import one_thread
from client.audit.membership_inference import attack
from privacy.accounting.events import Event


def test_members_of_a_plain_model_are_told_and_of_a_private_one_hardly():
    with one_thread():
        plain = attack(None)
        private = attack(Event("record", 8.0, 0.25, 100))
    assert plain.auc > 0.95
    assert private.auc < 0.8
