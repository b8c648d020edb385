"""The report as an entry of the Differential Privacy Deployments Registry (OpenDP and NIST).

The keys are the registry's own; what only the people behind the deployment know is left for them to
fill in and says so. The schema: github.com/opendp/deployments-registry-data.
"""

from collections.abc import Mapping
from typing import Any, Final

import yaml

FILL_IN: Final = "TO BE FILLED IN by the data curator"


def to_yaml(content: Mapping[str, Any]) -> str:
    """The registry's entry, as YAML in the registry's order."""
    text: str = yaml.safe_dump(
        entry(content), sort_keys=False, allow_unicode=True, width=96, default_flow_style=False
    )
    return (
        "# A draft entry, made from report.json; complete what is marked before submitting it.\n"
        + text
    )


def entry(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entry as values; of several runs the registry sees the life of the budget."""
    runs = content["runs"]
    first = runs[0] if runs else {}
    known = next((run for run in runs if run.get("trust")), None)
    return {
        "url_slug": _slug(first.get("name", "tacit")),
        "deployment": {
            "basic": _basic(content, first),
            "dp_variant": _variant(known),
            "privacy_loss": _loss(content, known),
            "deployment_model": _model(known, len(runs)),
            "implementation": _implementation(content, known),
            "administrative": {
                "status": "Draft",
                "registry_authors": [FILL_IN],
                "tier": 3 if known else 1,
            },
        },
    }


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "tacit"


def _basic(content: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    about = run.get("identity", {})
    return {
        "name": f"{about.get('task') or 'model'} ({run.get('name', '')})",
        "data_curators": [{"data_curator_name": FILL_IN, "data_curator_type": FILL_IN}],
        "description": f"A model trained by federated learning across {about.get('sites', '?')} "
        f"sites, {about.get('rounds_done', 0)} rounds.",
        "intended_use": about.get("purpose") or FILL_IN,
        "data_product_type": "Machine learning model",
        "data_product_region": FILL_IN,
        "publication_date": str(content["filing"].get("at", ""))[:10],
    }


def _variant(run: Mapping[str, Any] | None) -> dict[str, Any]:
    if run is None or run["guarantee"] is None:
        return {"unprotected_quantities": "Everything: no differential privacy was used."}
    return {
        "variant_name": "Approximate DP",
        "data_domain": "Finite sets of records of the task's public schema, one set a site.",
        "unprotected_quantities": "\n".join(
            f"- {one['quantity']}: {one['status']} ({one['how']})" for one in run["unprotected"]
        ),
    }


def _loss(content: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    if run is None or run["guarantee"] is None:
        return {"privacy_unit": "none"}
    promise, plain = run["guarantee"], content["plain"]
    shared = promise["federation"]["epsilon_if_shared"]
    return {
        "privacy_unit": {
            "record": "Record",
            "subject": "Person (subject)",
            "client": "Site (client)",
        }[promise["unit"]],
        "privacy_unit_details": f"Neighbouring: {promise['neighbours']} (add or remove one); the "
        f"unit is {run['identity']['unit_words']}.",
        "privacy_parameters": {"epsilon": plain["epsilon"], "delta": plain["delta"]}
        if isinstance(plain["epsilon"], float)
        else {},
        "privacy_parameters_details": "The largest over the sites and over the life of their "
        f"ledgers. If one person were at every site, epsilon of this run would be {_short(shared)}."
        + _colluding(promise)
        + _groups(promise),
    }


def _colluding(promise: Mapping[str, Any]) -> str:
    epsilon = promise["federation"].get("epsilon_colluding")
    if epsilon is None:
        return ""
    return (
        " Under secure aggregation these hold against the coordinator and the public; against all "
        f"other sites and the coordinator together epsilon is {_short(epsilon)}."
    )


def _groups(promise: Mapping[str, Any]) -> str:
    texts = [f"{_short(g['epsilon'])} for {g['records']} records" for g in promise["groups"]]
    return f" A person with several records: {', '.join(texts)}." if texts else ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _model(run: Mapping[str, Any] | None, runs: int) -> dict[str, Any]:
    if run is None:
        return {"model_name": "Federated"}
    central = run["trust"]["model"].startswith("Central")
    return {
        "model_name": "Central" if central else "Federated",
        "model_name_details": run["trust"]["noise"],
        "trust_assumptions": run["trust"]["holds"],
        "actors": "Sites (hold the data, train), coordinator (adds up, sees every message), "
        "recipients of the model.",
        "release_type": "Many releases",
        "release_type_details": f"The model after every round; {runs} run(s) in this report. One "
        "ledger per data set bounds all runs together.",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _implementation(content: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    if run is None:
        return {"additional_information": "The plan of the run is not on file here."}
    versions = ", ".join(f"{k} {v}" for k, v in sorted(run["identity"]["versions"].items()))
    lead = run["utility"]["lead"]
    last = run["utility"]["rounds"][-1] if run["utility"]["rounds"] else {}
    return {
        "preprocessing_and_hyperparameter_tuning": " ".join(run["tuning"].values()),
        "mechanisms": "\n".join(f"- {one['what']}: {one['value']}" for one in run["mechanism"])
        + (f"\n- Software: {versions}" if versions else ""),
        "composition": f"{run['accounting']['accountant']}; cross-checked by "
        f"{run['accounting']['second_accountant']}. {run['accounting']['amplification']}.",
        "post_processing": "Averaging over sites and rounds, optimiser state at the coordinator.",
        "justification": FILL_IN,
        "utility": f"{lead} {last[lead]:.4g} after round {last['round']}"
        if lead and last.get(lead) is not None
        else "no metrics on file",
        "additional_information": "Empirical checks: "
        + "; ".join(str(check["said"]) for check in content["checks"]),
    }
