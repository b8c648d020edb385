"""Masks: keystreams of AES-256 in counter mode, added to updates in the ring of machine words.

A mask's seed is used for one mask: it is derived from keys that are made for one attempt.
"""

from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

Words = NDArray[np.uint32] | NDArray[np.uint64]
"""Elements of the ring 2^32 or 2^64."""

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_SLAB: Final = 1 << 18  # bytes: keystream and words stay in a core's cache
_ZEROS: Final = bytes(_SLAB)
_ONCE: Final = bytes(12)
"""A nonce for a key that encrypts one message."""


def public_of(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def agreed_key(private: bytes, public: bytes, info: bytes) -> bytes:
    """The 32 bytes that the holders of two X25519 keys share for one purpose (HKDF-SHA256).

    ValueError for a public key of low order, with which the secret would be known to all.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public)
    )
    return HKDF(hashes.SHA256(), KEY_BYTES, None, info).derive(secret)


def encrypt(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """AES-256-GCM under a key that is used for one message; `bound` must be told to decrypt."""
    return AESGCM(key).encrypt(_ONCE, plain, bound)


def decrypt(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What was encrypted; None where it is not what the key's other holder made."""
    try:
        return AESGCM(key).decrypt(_ONCE, sealed, bound)
    except InvalidTag:
        return None


def add_mask(words: Words, seed: bytes, *, subtract: bool = False) -> None:
    """Add the mask of a 32-byte seed to every word, in place, or subtract it; modulo the ring."""
    if not words.flags.c_contiguous or words.dtype not in (np.dtype("<u4"), np.dtype("<u8")):
        raise ValueError(f"words must be contiguous uint32 or uint64, got {words.dtype}")
    flat: NDArray[Any] = words.reshape(-1)
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    count = _SLAB // flat.itemsize
    room = np.empty(min(count, len(flat)), dtype=flat.dtype)
    change = np.subtract if subtract else np.add
    for at in range(0, len(flat), count):
        part = flat[at : at + count]
        mask = room[: len(part)]
        stream.update_into(memoryview(_ZEROS)[: mask.nbytes], mask.view(np.uint8).data)
        change(part, mask, out=part)
