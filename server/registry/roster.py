"""The parties of secure aggregation: the enrolled sites' verifying keys, written into the plan.

Each site's owner approves them with the plan, and compares them with what the other sites' owners
say: a coordinator that names keys of its own would play these sites.
"""

from dataclasses import replace

from privacy.contract.plan import Plan, PlanError
from server.registry.relays import check_composes, relays_of
from server.registry.sites import Members


def with_roster(plan: Plan, members: Members) -> Plan:
    """The plan with the keys of all enrolled sites, where it names none; PlanError.

    PlanError as well where a relay is enrolled and the plan needs each site's own reply.
    """
    check_composes(plan, relays_of(members))
    if not plan.is_secure or plan.roster:
        return plan
    enrolled = {m.name: m for m in sorted(members.enrolled, key=lambda m: m.name)}
    if len(enrolled) != plan.sites:
        raise PlanError(
            f"sites must be {len(enrolled)}, the number of enrolled sites, where aggregation = "
            f'"secure" and the plan names no keys, got {plan.sites}'
        )
    named = {
        name: replace(plan.site_overrides(name), key=member.certificate.signing)
        for name, member in enrolled.items()
    }
    return replace(plan, site={**plan.site, **named})
