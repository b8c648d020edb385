"""The plans that coordinators sent to this site, and what its owner said to them.

`DIR/plans/<hash>.json` holds each plan as it came; approvals and denials stand in the policy file,
which only the owner edits, by these functions or by hand.
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from client.agent.credentials import Enrolled
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from privacy.contract.policy import Policy, PolicyError, load_policy, parse_policy
from privacy.files import write_atomic

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SHORTEST: Final = 6
UNANSWERED_MAX: Final = 100
"""How many plans may wait for an answer: a coordinator could fill the disk with more."""


@dataclass(frozen=True, slots=True)
class ReceivedPlan:
    """A plan that a coordinator sent, and when it first came (seconds since the epoch)."""

    plan: Plan
    since: float


def site_of(directory: Path) -> str:
    """The site's name, as it was enrolled; else the folder's."""
    here = Enrolled(directory)
    return here.name if here.about.is_file() else directory.absolute().name


def remember(directory: Path, plan: Plan, policy: Policy | None = None) -> Path:
    """Keep a plan that a coordinator asked for; the same one again changes nothing.

    Of those that the policy neither approves nor denies only the last `UNANSWERED_MAX` are kept.
    """
    path = directory / "plans" / f"{plan.digest}.json"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, plan.to_json().encode())
        _forget_oldest(
            path.parent, {*policy.plans, *policy.denied} if policy is not None else set()
        )
    return path


def _forget_oldest(folder: Path, answered: set[str]) -> None:
    waiting = [path for path in folder.glob("*.json") if path.stem not in answered]
    waiting.sort(key=lambda path: path.stat().st_mtime_ns)
    for path in waiting[:-UNANSWERED_MAX]:
        path.unlink(missing_ok=True)


def received(directory: Path) -> list[ReceivedPlan]:
    """The plans received so far, the latest last."""
    plans = []
    for path in (directory / "plans").glob("*.json"):
        try:
            plan = from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, PlanError) as error:
            raise PlanError(f"{path}: must be a plan as it was received ({error})") from None
        if plan.digest != path.stem:
            raise PlanError(f"{path}: holds another plan, {plan.digest}")
        plans.append(ReceivedPlan(plan, path.stat().st_mtime))
    return sorted(plans, key=lambda one: (one.since, one.plan.digest))


def find(directory: Path, text: str) -> str:
    """The whole hash that `text` begins, of the plans asked; or a whole hash itself."""
    if _DIGEST.fullmatch(text):
        return text
    matches = [one.plan.digest for one in received(directory) if one.plan.digest.startswith(text)]
    if len(text) < _SHORTEST or len(matches) != 1:
        raise PlanError(
            f"{text}: must be the hash of a plan, or at least its first {_SHORTEST} digits "
            f"({len(matches)} received plans begin so)"
        )
    return matches[0]


def last_approved(directory: Path, policy: Policy, *, but: str = "") -> Plan | None:
    """The plan approved last, other than `but`, of those that were asked."""
    plans = {one.plan.digest: one.plan for one in received(directory)}
    for digest in reversed(policy.plans):
        if digest in plans and digest != but:
            return plans[digest]
    return None


def difference(old: Plan, new: Plan) -> dict[str, tuple[Any, Any]]:
    """The keys that differ, each with its old and new value."""
    before, after = old.to_dict(), new.to_dict()
    keys = [item.name for item in fields(Plan) if item.name != "simulation"]
    return {
        key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    }


def approve(policy: Path, digest: str) -> Policy:
    """Write an approval into the policy file."""
    rules = load_policy(policy)
    plans = (*(one for one in rules.plans if one != digest), digest)
    denied = tuple(one for one in rules.denied if one != digest)
    return _rewrite(policy, replace(rules, plans=plans, denied=denied))


def deny(policy: Path, digest: str) -> Policy:
    """Write a denial into the policy file; it outweighs every approval."""
    rules = load_policy(policy)
    plans = tuple(one for one in rules.plans if one != digest)
    denied = (*(one for one in rules.denied if one != digest), digest)
    return _rewrite(policy, replace(rules, plans=plans, denied=denied))


def approve_package(policy: Path, code: str, *, allowed: bool = True) -> Policy:
    """Write the approval of a task package into the policy file, or take it back."""
    rules = load_policy(policy)
    others = tuple(one for one in rules.packages if one != code)
    return _rewrite(policy, replace(rules, packages=(*others, code) if allowed else others))


def _rewrite(path: Path, policy: Policy) -> Policy:
    """Change the three lists in the owner's text and nothing else of it, where that can be done."""
    text = path.read_text(encoding="utf-8")
    for key in ("plans", "denied", "packages"):
        line = f"{key} = {_list(getattr(policy, key))}"
        text, count = re.subn(rf"(?m)^[ \t]*{key}[ \t]*=[ \t]*\[[^\]]*\]", line, text, count=1)
        if not count and getattr(policy, key):
            text = f"{line}\n{text}"
    try:
        same = parse_policy(text) == policy
    except PolicyError:
        same = False
    write_atomic(path, (text if same else policy.to_toml()).encode())
    return policy


def _list(digests: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{one}"' for one in digests) + "]"
