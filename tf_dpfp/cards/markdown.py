"""A card as markdown, from its fields alone. Figures are never rounded down."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tf_dpfp import accounting

# With more groups a line says how many there are, and between what.
_MOST_NORMS = 12


def write(fields: Mapping[str, Any]) -> str:
    """Writes a card as markdown.

    Args:
        fields: Fields of a privacy card.

    Returns:
        The text.
    """
    parts = [
        f"# Privacy card: {fields['model']['name']}",
        *_warnings(fields),
        "## Guarantee",
        _guarantee(fields),
        "## Attacks that the guarantee allows",
        *_attacks(fields, "member"),
        *_persons(fields),
        "## Training",
        _training(fields),
        *_steps(fields),
        "## Figures of the privacy statement",
        *_figures(fields),
        *fields["explanations"],
        "## What is not covered",
        *_not_covered(fields),
        "## Hazards",
        "The topics are those of NIST SP 800-226; the words are tf_dpfp's.",
        _table(
            ("hazard", "status", "in this training"),
            ((h["topic"], h["status"], h["words"]) for h in fields["hazards"]),
        ),
        "## Audit and tuning",
        *_audit(fields),
        _tuning(fields),
        "## Data and code",
        *_data(fields),
        _code(fields),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _listed(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _number(field: Mapping[str, Any]) -> str:
    if field["infinite"]:
        return "infinite"
    if field["value"] is None:
        return "none"
    return accounting.round_up(field["value"])


def _percent(rate: float) -> str:
    """Formats a rate; never below it."""
    return f"{min(math.ceil(rate * 1e5) / 1e3, 100.0):.3f} %"


def _warnings(fields: Mapping[str, Any]) -> list[str]:
    said = []
    for warning in fields["warnings"]:
        said.append(f"**{warning['words']}**")
        if warning["items"]:
            said.append(_listed(warning["items"]))
    return said


def _guarantee(fields: Mapping[str, Any]) -> str:
    unit = fields["unit"]
    protects = unit["protects"].replace("_", " ")
    if unit["most_examples_in_a_step"]:
        protects += (
            f", with all examples; up to {unit['most_examples_in_a_step']} of "
            "them in a step"
        )
    rows = [
        ("unit of privacy", f"one {protects}"),
        ("adjacency", fields["adjacency"]["words"]),
        ("delta", repr(fields["delta"])),
    ]
    for name in ("rdp", "pld"):
        epsilon = fields["epsilon"][name]
        rows.append((f"epsilon, {name.upper()}", _with_reason(epsilon)))
    rows.append(("mu of Gaussian DP", _mu(fields["gaussian_dp"])))
    return _table(("", ""), rows)


def _with_reason(field: Mapping[str, Any]) -> str:
    figure = _number(field)
    return figure if field["reason"] is None else f"{figure}: {field['reason']}"


def _mu(found: Mapping[str, Any]) -> str:
    if found["mu"] is None:
        return f"none: {found['reason']}"
    figure = accounting.round_up(found["mu"])
    if found["exact"]:
        return f"{figure} (exact: {found['mu']!r})"
    return f"{figure}. {found['reason']}"


def _attacks(fields: Mapping[str, Any], whom: str) -> list[str]:
    attacks = fields["attacks"]
    return [
        attacks["words"],
        _table(
            (
                "false positives",
                f"true positives, at most ({whom}s found)",
            ),
            (
                (
                    f"{100.0 * rate['false_positive_rate']:g} %",
                    _percent(rate["true_positive_rate"]),
                )
                for rate in attacks["rates"]
            ),
        ),
        f"Computed from: {_METHODS[attacks['method']]}.",
    ]


_METHODS = {
    "gaussian": "the composed Gaussian mechanism",
    "pld": "the privacy loss distribution",
    "rdp": "Renyi divergences, which is not tight",
    "none": "nothing, for nothing is proved",
}


def _persons(fields: Mapping[str, Any]) -> list[str]:
    persons = fields["persons"]
    if persons is None:
        return []
    epsilon = persons["epsilon"]
    return [
        f"## Persons with up to {persons['most_examples']} examples",
        "If no person has more, which is given here and not checked:",
        _table(
            ("", ""),
            (
                ("epsilon, RDP", _with_reason(epsilon["rdp"])),
                ("epsilon, PLD", _with_reason(epsilon["pld"])),
                ("mu of Gaussian DP", _mu(persons["gaussian_dp"])),
            ),
        ),
        *_attacks(persons, "person"),
    ]


def _training(fields: Mapping[str, Any]) -> str:
    model, population = fields["model"], fields["population"]
    rows = [
        ("mechanism", fields["mechanism"]["words"]),
        ("released", "; ".join(fields["released"]) or "nothing yet"),
        ("model", f"{model['class']}, {_weights(model)}"),
        ("examples", "not known" if population is None else str(population)),
        ("clip norms of the next step", _clip_norms(fields["clip_norms"])),
        ("seeds", _seeds(fields)),
    ]
    return _table(("", ""), rows)


def _weights(model: Mapping[str, Any]) -> str:
    if model["weights"] is None:
        return "not built"
    return (
        f"{model['weights']} weights, {model['trainable_weights']} of them "
        "trainable"
    )


def _seeds(fields: Mapping[str, Any]) -> str:
    if fields["seeds"]["seeded"]:
        return "SEEDED: chosen by the user, so that the noise can be repeated"
    return "none; keys are from the operating system"


def _clip_norms(found: Mapping[str, Any]) -> str:
    said = []
    for what in ("gradients", "representations"):
        norms = found[what]
        if not norms:
            continue
        if len(norms) > _MOST_NORMS:
            least, most = min(norms.values()), max(norms.values())
            text = f"{len(norms)} groups, {least:g} to {most:g}"
        else:
            text = ", ".join(f"{name} {c:g}" for name, c in norms.items())
        said.append(f"{what}: {text}")
    if found["reason"] is not None:
        said.append(found["reason"])
    return "; ".join(said) or "none"


def _steps(fields: Mapping[str, Any]) -> list[str]:
    if not fields["steps"]:
        return ["No step was recorded."]
    rows = []
    for step in fields["steps"]:
        release, search = _described(step["release"]), step.get("search")
        if search is not None:
            release += f", in each run of search {search['identity']}"
        rows.append(
            (
                str(step["steps"]),
                repr(step["noise_multiplier"]),
                _described(step["sampling"]),
                release,
                "yes" if step["seeded"] else "no",
            )
        )
    head = ("steps", "noise multiplier", "sampling", "release", "seeded")
    return [_table(head, rows)]


def _described(part: Mapping[str, Any]) -> str:
    values = ", ".join(
        f"{name} {value}"
        for name, value in part.items()
        if name != "kind" and value not in (None, 0.0)
    )
    return f"{part['kind']}: {values}" if values else part["kind"]


def _figures(fields: Mapping[str, Any]) -> list[str]:
    if not fields["figures"]:
        return ["None."]
    rows = (
        (
            figure["label"].rstrip(":"),
            _ABOUT.get(figure["about"], figure["about"]),
            _number(figure["epsilon"]["rdp"]),
            _number(figure["epsilon"]["pld"]),
        )
        for figure in fields["figures"]
    )
    return [_table(("figure", "is it proved?", "RDP", "PLD"), rows)]


_ABOUT = {
    "proved": "proved",
    "zero_out": "proved, under zero-out adjacency",
    "conditional": "NOT proved: conditional, under zero-out adjacency",
    "claimed": "NOT proved: claimed elsewhere",
}


def _not_covered(fields: Mapping[str, Any]) -> list[str]:
    if fields["not_covered"]:
        return [_listed(fields["not_covered"])]
    return ["Nothing is protected." if fields["steps"] else "No step ran."]


def _audit(fields: Mapping[str, Any]) -> list[str]:
    audit = fields["audit"]
    if audit is None:
        return ["No audit was given to this card."]
    head = ("delta", "epsilon is at least", "proved", "refuted")
    rows = (
        (
            f"{point['delta']:g}",
            _down(point["lower_bound"]),
            _with_reason(point["proved"]),
            "REFUTED" if point["refuted"] else "no",
        )
        for point in audit["points"]
    )
    return [
        f"Audit ({audit['method']}, {audit['adjacency']} adjacency, by "
        f"{audit['unit']}, {audit['scores']} scores, confidence "
        f"{100.0 * audit['confidence']:g} %):",
        _table(head, rows),
    ]


def _down(field: Mapping[str, Any]) -> str:
    if field["infinite"]:
        return "infinite"
    return f"{math.floor(field['value'] * 1000.0) / 1000.0:.3f}"


def _tuning(fields: Mapping[str, Any]) -> str:
    if fields["tuning"] is None:
        return "No search for settings is in the ledger."
    return "In the ledger:\n\n" + _listed(map(_described, fields["tuning"]))


def _data(fields: Mapping[str, Any]) -> list[str]:
    if not fields["data"]:
        return ["No digests of the data were asked for."]
    head = ("data", "type", "shape", "SHA-256", "keyed")
    return [
        _table(
            head,
            (
                (
                    digest["name"],
                    digest["dtype"],
                    str(digest["shape"]),
                    f"`{digest['sha256']}`",
                    "yes" if digest["keyed"] else "no",
                )
                for digest in fields["data"]
            ),
        )
    ]


def _code(fields: Mapping[str, Any]) -> str:
    code = fields["code"]
    rows = [*code["versions"].items()]
    rows.append(("source of tf_dpfp, SHA-256", f"`{code['package_sha256']}`"))
    rows += [
        (f"{source['name']}, SHA-256", f"`{source['sha256']}`")
        for source in code["sources"]
    ]
    return _table(("code", ""), rows)
