"""The protocol's messages as JSON: read within bounds, every key and length checked."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from privacy.files import DocumentError, Limits, canonical_json, parse_json
from privacy.secagg.parties import MOST, SignedKeys
from privacy.secagg.party import SEALED_BYTES, Revealed, SignedShares
from privacy.secagg.shares import SHARE_BYTES

LIMITS: Final = Limits(size=1 << 20, depth=4, digits=8, length=256, count=8 * MOST)
_KEYS: Final = ("encryption", "masking", "commitment", "signature")
_SIGNATURE: Final = 64
_LONGEST_NAME: Final = 64


class MessageError(ValueError):
    """A text that is none of the protocol's messages."""


def keys_text(keys: SignedKeys) -> str:
    """A party's signed keys."""
    return canonical_json(_keys_object(keys))


def read_keys(text: object) -> SignedKeys:
    """What `keys_text` wrote."""
    return _keys(_parsed(text))


def list_text(keys: Sequence[SignedKeys]) -> str:
    """All parties' signed keys."""
    return canonical_json([_keys_object(one) for one in keys])


def read_list(text: object) -> tuple[SignedKeys, ...]:
    """What `list_text` wrote."""
    listed = _parsed(text)
    if not isinstance(listed, list) or len(listed) > MOST:
        raise MessageError(f"expected a list of at most {MOST} parties' keys")
    return tuple(_keys(one) for one in listed)


def shares_text(message: SignedShares) -> str:
    """A party's agreement and its encrypted shares."""
    return canonical_json(
        {
            "site": message.site,
            "agreement": message.agreement.hex(),
            "sealed": _hex(message.sealed),
        }
    )


def read_shares(text: object) -> SignedShares:
    """What `shares_text` wrote."""
    fields = _fields(_parsed(text), ("site", "agreement", "sealed"))
    return SignedShares(
        _name(fields["site"]),
        _bytes(fields["agreement"], _SIGNATURE),
        _map(fields["sealed"], SEALED_BYTES),
    )


def revealed_text(message: Revealed) -> str:
    """A party's revealed shares."""
    fields = {"site": message.site, "seeds": _hex(message.seeds), "keys": _hex(message.keys)}
    return canonical_json(fields)


def read_revealed(text: object) -> Revealed:
    """What `revealed_text` wrote."""
    fields = _fields(_parsed(text), ("site", "seeds", "keys"))
    return Revealed(
        _name(fields["site"]),
        _map(fields["seeds"], SHARE_BYTES),
        _map(fields["keys"], SHARE_BYTES),
    )


def map_text(values: Mapping[str, bytes]) -> str:
    """Bytes by a party's name: signatures, or shares."""
    return canonical_json(_hex(values))


def read_map(text: object, length: int) -> dict[str, bytes]:
    """What `map_text` wrote, each of so many bytes."""
    return _map(_parsed(text), length)


def read_signatures(text: object) -> dict[str, bytes]:
    """Signatures by name."""
    return read_map(text, _SIGNATURE)


def read_signature(text: object) -> bytes:
    """One signature, in hexadecimal."""
    return _bytes(text, _SIGNATURE)


def names_text(names: Sequence[str]) -> str:
    """Parties' names."""
    return canonical_json(list(names))


def read_names(text: object) -> tuple[str, ...]:
    """What `names_text` wrote."""
    listed = _parsed(text)
    if not isinstance(listed, list) or len(listed) > MOST:
        raise MessageError(f"expected a list of at most {MOST} names")
    return tuple(_name(one) for one in listed)


def _parsed(text: object) -> Any:
    if not isinstance(text, str):
        raise MessageError("expected a text")
    try:
        return parse_json(text, LIMITS)
    except DocumentError:
        raise MessageError("expected JSON within bounds") from None


def _keys_object(keys: SignedKeys) -> dict[str, str]:
    return {"site": keys.site} | {name: getattr(keys, name).hex() for name in _KEYS}


def _keys(value: object) -> SignedKeys:
    fields = _fields(value, ("site", *_KEYS))
    return SignedKeys(
        _name(fields["site"]),
        _bytes(fields["encryption"], 32),
        _bytes(fields["masking"], 32),
        _bytes(fields["commitment"], 32),
        _bytes(fields["signature"], _SIGNATURE),
    )


def _fields(value: object, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise MessageError(f"expected an object with the keys {', '.join(keys)}")
    return value


def _map(value: object, length: int) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(value) > MOST:
        raise MessageError(f"expected an object of at most {MOST} parties")
    return {_name(name): _bytes(one, length) for name, one in value.items()}


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise MessageError("expected a party's name")
    if not value.isprintable():
        raise MessageError("expected a printable name")
    return value


def _bytes(value: object, length: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * length:
        raise MessageError(f"expected {length} bytes in hexadecimal")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise MessageError(f"expected {length} bytes in hexadecimal") from None


def _hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}
