"""What a report says in words: trust, releases, what is not protected, what epsilon leaves open.

Each sentence depends on the plan and on where the evidence comes from; the figures stand elsewhere.
"""

from collections.abc import Mapping
from typing import Final

from privacy.contract import training_words
from privacy.contract.cadence import often
from privacy.contract.pilots import clip_words, searched
from privacy.contract.plan import Plan
from privacy.report.sources import FEDERATION, SIMULATION, SITE
from privacy.statistics import report_text

Item = Mapping[str, str]

GLOSSARY: Final = (
    (
        "Differential privacy",
        "a promise: the result would have been almost as likely without any one record. Random "
        "noise makes it true.",
    ),
    (
        "Epsilon (ε)",
        "the most that one record can change the odds of any result: by the factor e^ε (2.7 for "
        "ε = 1). Smaller protects better; at 0 nothing can be learnt.",
    ),
    (
        "Delta (δ)",
        "the small probability with which the factor may be exceeded.",
    ),
    (
        "Round",
        "every site improves the shared model on its own data and sends back the improvement.",
    ),
    (
        "Budget",
        "the most ε that the owner of the data allows over their whole life. Every round spends "
        "some; what is spent never comes back.",
    ),
    (
        "Ledger",
        "the account book of the data: each expense is written before the data are touched, each "
        "line seals the one before, so that a later change shows.",
    ),
    ("Record", "one row of a site's data, for instance one visit of one person."),
    ("Site", "an organisation that holds data and trains on them; the data never leave it."),
    ("Coordinator", "who runs the federation: sends the model out and adds up what comes back."),
)


def unit_words(unit: str) -> str:
    """Whom the guarantee protects, as the subject of a sentence."""
    return {
        "record": "one record",
        "subject": "one person with all their records at a site",
        "client": "one whole site",
        "none": "nobody",
    }[unit]


def releases(plan: Plan, kind: str) -> list[Item]:
    """B: every output, who receives it, how often."""
    if plan.statistics is not None:
        return report_text.releases(plan)
    secure = "masked improvement: only the sum of all sites' can be read, with all their noise"
    update = {
        "record": "noisy improvement of the model (noise added at the site)",
        "subject": "noisy improvement of the model (noise added at the site)",
        "client": "improvement of the model, bounded in size and without noise",
        "none": "improvement of the model, neither bounded nor noisy",
    }[plan.unit]
    items: list[Item] = [
        {
            "output": secure if plan.is_secure else update,
            "recipient": "coordinator",
            "often": "once a round and site",
        },
        {
            "output": "shared model after the round",
            "recipient": "all sites, and whom the coordinator gives it",
            "often": "once a round",
        },
        {
            "output": "status and refusal code",
            "recipient": "coordinator",
            "often": "once a round and site",
        },
    ]
    if plan.metrics:
        items.append(
            {
                "output": f"noisy metrics on the site's rows ({', '.join(plan.metrics)})",
                "recipient": "coordinator",
                "often": f"{often(plan)}, paid from the same budget",
            }
        )
    if kind != SIMULATION:
        items.append(
            {
                "output": "salted digest of the ledger's last line",
                "recipient": "coordinator",
                "often": "once a round and site",
            }
        )
    return items


def trust(plan: Plan, kind: str, colluding: object = None) -> dict[str, str]:
    """C: who adds the noise where, and against whom it holds.

    `colluding` is epsilon where all other parties of secure aggregation work together.
    """
    if plan.is_secure:
        terms = plan.terms
        noise = (
            "Every site adds a share of the noise and masks what it sends; the masks cancel in the "
            f"sum of all. {terms.shares} honest sites' shares of the {terms.parties} are enough "
            "for the figure stated."
        )
        figure = f"{colluding:.4g}" if isinstance(colluding, float) else "infinite"
        holds = (
            "The guarantee holds against the coordinator and everyone who sees the model, also "
            f"where up to {terms.colluding} other sites tell the coordinator all that they know, "
            f"and up to {terms.dropouts} sites drop out of a round. Against all other sites and "
            f"the coordinator together epsilon is {figure}: a site's own share of the noise alone "
            "protects it there."
        )
        model = "Federated, with distributed noise under secure aggregation"
    elif plan.noised_at_site:
        noise = "Every site adds the noise itself, before anything leaves it."
        holds = (
            "The guarantee holds against the coordinator, against every other site, against all of "
            "them together, and against everyone who sees the model."
        )
        model = "Federated, with noise at the sites"
    elif plan.noised_centrally:
        noise = "The coordinator adds the noise after adding up the sites' bounded improvements."
        holds = (
            "The guarantee holds against the other sites and everyone who sees the model. It does "
            "NOT hold against the coordinator, who sees each site's improvement without noise."
        )
        model = "Central: the coordinator is trusted"
    else:
        noise = "No noise is added anywhere."
        holds = "There is no guarantee against anybody: not the coordinator, not the other sites."
        model = "None"
    where = {
        SIMULATION: "This was a simulation: all sites ran on one machine, which saw all data.",
        FEDERATION: "Sites and coordinator ran on separate machines.",
        SITE: "The site ran on its own machine; the coordinator on another.",
    }[kind]
    return {"model": model, "noise": noise, "holds": holds, "setting": where}


def unprotected(plan: Plan, kind: str) -> list[Item]:
    """E: what the guarantee does not cover, and what becomes of it."""
    if plan.statistics is not None:
        return report_text.unprotected(plan)
    status = "not sent"
    items: list[Item] = []
    if plan.noised_centrally:
        items.append(
            _item("Improvements of single sites", "in clear", "seen by the coordinator, not kept")
        )
    if plan.unit == "none":
        items.append(_item("Everything the model learns", "in clear", "no privacy was asked for"))
    items.append(
        _item(
            "Number of records of a site",
            "public" if kind != SITE else "not sent",
            "the plan names a public nominal number, which every average is divided by; the true "
            "number stays at the site",
        )
    )
    if plan.metrics:
        noise = f"noise of {plan.metrics_sigma:g} times the bound"
        paid = f"{noise}, {often(plan)}; charged to the same budget"
        items.append(_item("Loss, accuracy, counts on training records", "noised", paid))
    else:
        items.append(_item("Loss, accuracy, counts on training records", status, "off by default"))
    if kind == SIMULATION:
        items.append(
            _item(
                "Records set aside for evaluation",
                "in clear",
                "the quality figures are computed on them without noise; in a simulation these "
                "come from the same data set, and ε says nothing about them",
            )
        )
    else:
        items.append(
            _item("Records for evaluation", "public", "quality is measured on public data only")
        )
    items += [
        _item("Scaling and categories of the inputs", "public", "constants of the task's schema"),
        training_words.class_weights(plan),
        _item(
            "Weights of the sites",
            "public",
            "equal" if plan.weights == "equal" else "by the public nominal numbers of records",
        ),
        _item(
            "Who took part, when, how long it took",
            "in clear",
            "the coordinator sees who answers and when; the number of training steps is fixed, yet "
            "running time is not masked",
        ),
        _item("Refusals", "in clear", "a code that depends on budget and policy, not on records"),
        _item(
            "Choice of the settings",
            "not charged",
            "if these very records were used to choose them, that is not in ε",
        ),
        training_words.early_stopping(plan),
        _item("Starting model", "public", "drawn from the plan's public seed"),
        *training_words.pretraining(plan),
    ]
    return items


def _item(quantity: str, status: str, how: str) -> Item:
    return {"quantity": quantity, "status": status, "how": how}


NOT_COVERED: Final = (
    "Facts about people in general. If the model learns that smoking harms, that says something "
    "about every smoker, in the data or not.",
    "The people whom the model is later applied to, and harm by wrong or unfair predictions.",
    "Anything outside the computation: a stolen disk, a data set published elsewhere, an insider.",
)


def not_covered(plan: Plan, groups: bool) -> list[str]:
    """N: what epsilon does not cover, in plain words."""
    items = list(NOT_COVERED)
    if plan.unit == "record" and groups:
        items.insert(
            0,
            "A person with several records is protected less than the figure above says; the "
            "section on the guarantee gives the figures for 2 and 5 records.",
        )
    if plan.noised_at_site:
        items.append("The same person's records at two sites: then the sites' ε add up.")
    if plan.noised_centrally:
        items.append("The coordinator, who sees the sites' improvements before the noise.")
    return items


def mechanism(plan: Plan) -> list[Item]:
    """F: what was done to the data, with what was assumed beside what was used."""
    if plan.unit == "none":
        return [_fact("Mechanism", "none: plain training, nothing bounded, no noise")]
    if plan.statistics is not None:
        return [*report_text.mechanism(plan), *_numbers()]
    items = [
        _fact(
            "Mechanism",
            "Gaussian noise on a sum of bounded contributions"
            + (" (DP-SGD)" if plan.noised_at_site else " (DP-FedAvg)"),
        ),
        _fact("Bound of one contribution (clip, L2 norm)", clip_words(plan)),
    ]
    if plan.noised_at_site:
        each, plural = ("record", "records") if plan.unit == "record" else ("person", "people")
        if plan.unit == "subject":
            most = f"at most {plan.rows_per_subject}" if plan.rows_per_subject else "all"
            items.append(
                _fact("Contribution of a person", f"the mean gradient of {most} of their rows")
            )
        items += [_fact(name, what) for name, what in training_words.views(plan).items()]
        items += [
            _fact("Sampling used", f"Poisson: each {each} by itself, probability {plan.rate:g}"),
            _fact("Sampling assumed by the accounting", "the same"),
            _fact(
                "Steps",
                f"{plan.steps} a round, {plan.rounds} rounds at most; counted, never derived from "
                "the data; an empty sample takes a noisy step too",
            ),
            _fact("Sum divided by", f"a public number: rate x nominal {plural}"),
        ]
    else:
        items += [
            _fact("Sampling", "none: every round asks every site; no amplification is claimed"),
            _fact("Steps", f"one release a round, {plan.rounds} rounds at most"),
        ]
        if plan.clip_quantile is not None:
            items.append(
                _fact(
                    "Adaptive bound",
                    f"moves towards the quantile {plan.clip_quantile:g} of the norms; the noisy "
                    "share below it is charged",
                )
            )
    items += [
        *_numbers(),
        _fact("Layers that mix records (batch normalisation)", "refused"),
        _fact("Undefined gradients", "set to zero before the bound is applied"),
    ]
    if plan.is_secure:
        items.append(
            _fact(
                "Secure aggregation",
                "Bonawitz et al. 2017 with signed keys and lists, threshold "
                f"{plan.terms.threshold} of {plan.terms.parties}; one step a round. That sums of "
                "rounded Gaussians differ from one adds less than 1e-9 to delta (epsilon <= 4).",
            )
        )
    if plan.average:
        items.append(_fact("Released model", "running average of the rounds (costs nothing more)"))
    return items


def _numbers() -> list[Item]:
    """Where the noise comes from, and what a computer's numbers do to it."""
    return [
        _fact("Random numbers", "operating system's entropy through a cryptographic stream"),
        _fact(
            "Number format",
            "sums and noise are added as whole numbers on a public grid, and the noise pays for "
            "what rounding adds to a record's part of a sum; the rest of the analysis, gradients "
            "included, is over real numbers",
        ),
        _fact(
            "Sampler",
            "a rounded Gaussian: a number that rounding could move is drawn to 200 digits; its "
            "distance from the ideal adds less than 1e-30 to delta",
        ),
    ]


def _fact(what: str, value: str) -> Item:
    return {"what": what, "value": value}


def security(kind: str) -> list[Item]:
    """L: how the parties were kept apart and known to each other."""
    if kind == SIMULATION:
        return [
            _fact("Transport", "none: one process on one machine"),
            _fact("Keys", "the report is signed with a key made in the run folder"),
        ]
    return [
        _fact("Transport", "TLS 1.3, certificates on both sides; sites open no port"),
        _fact("Identities", "one certificate a site, signed by the coordinator's own authority"),
        _fact("Keys", "made where they are used and never sent; Ed25519 signs heads and reports"),
        _fact("Code", "sites run what is installed; nothing executable travels"),
    ]


def pitfalls(plan: Plan, audited: bool) -> list[Item]:
    """O: the known ways in which private training goes wrong, and what was done about each."""
    if plan.unit == "none":
        return []
    if plan.statistics is not None:
        return report_text.pitfalls(audited)
    tested = "tested" if audited else "prevented"
    rows = [
        ("Shuffled batches accounted as Poisson samples", tested, "records are drawn one by one"),
        ("Epochs counted instead of steps", "prevented", "steps are fixed and entered beforehand"),
        ("Several batches under one noise draw", "prevented", "one bounded sum for each draw"),
        ("Undefined or infinite gradients", tested, "zeroed before the bound is applied"),
        ("Predictable or repeated noise", tested, "operating system's entropy at every step"),
        ("True counts as denominator or weight", "prevented", "public numbers only"),
        ("Forgetting earlier jobs", "prevented", "one ledger for the life of the data"),
        ("Retries that draw fresh noise for free", "prevented", "a stored reply or a new expense"),
        ("Unpaid metrics and messages", "prevented", "one exit; each field is paid or constant"),
        ("Average of epsilons over the sites", "prevented", "the largest is reported"),
        ("Tuning on private records", "accepted", "not charged; see the unprotected quantities"),
        ("Timing", "accepted", "fixed steps; running time is not masked"),
        ("Finite precision of the noise", "prevented", "whole numbers on a public grid"),
    ]
    return [{"pitfall": name, "status": status, "how": how} for name, status, how in rows]


def tuning(plan: Plan) -> dict[str, str]:
    """I: preprocessing and the choice of settings, charged or not."""
    constants = (
        "By the public constants of the task alone; nothing is computed from the private records."
    )
    if plan.constants_from is not None:
        constants = (
            "By public constants that were chosen from earlier statistics with noise, of digest "
            f"{plan.constants_from}. These were paid for when they were released, from the ledgers "
            "of the sites that gave them; using them costs nothing more."
        )
    rule = ""
    if plan.lr == "auto":
        rule = (
            f" The learning rate{' in the middle' if plan.tune else ''} is {plan.learning_rate:g}, "
            "by the rule for lr = auto: from the plan's public numbers, not from any record."
        )
    return {"preprocessing": constants, "tuning": searched(plan) + rule}
