"""What is on a card, and that it is what the privacy statement says."""

import dataclasses
import functools
import json
import math
import re

import keras
import numpy as np
import pytest

import tf_dpfp
from tests.cards import common
from tf_dpfp import accounting
from tf_dpfp import auditing
from tf_dpfp import cards
from tf_dpfp.cards import guarantees

pytestmark = pytest.mark.usefixtures("without_trial")

DELTA = 1e-3

_model = functools.cache(lambda make: make())


@functools.cache
def _card(make):
    return tf_dpfp.privacy_card(_model(make), DELTA)


def _strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


# By module: all tests of one training follow each other, which spares most of
# the PLDs.
@pytest.fixture(
    scope="module", params=common.ALL, ids=lambda make: make.__name__
)
def make(request):
    return request.param


def test_cards_are_strict_json_and_as_the_schema_says(make):
    fields = _strict(_card(make).to_json())
    assert common.problems(fields) == []
    # And come back.
    assert cards.PrivacyCard(fields).to_json() == _card(make).to_json()


def test_the_schema_describes_every_field_of_a_card():
    assert set(common.SCHEMA["properties"]) == {
        *_card(common.sums).fields,
        "file",
    }
    fields = dict(_card(common.sums).fields)
    for name in fields:
        less = {key: value for key, value in fields.items() if key != name}
        assert common.problems(less) == [f"card.{name} is missing"]
    for wrong in (
        {"delta": "0.1"},
        {"more": 1},
        {"attacks": {**fields["attacks"], "method": "guess"}},
        {"epsilon": {**fields["epsilon"], "rdp": {"value": -1.0}}},
        {"code": {**fields["code"], "package_sha256": "abc"}},
    ):
        assert common.problems({**fields, **wrong}), wrong


def _printed(text):
    found = re.findall(r"^ {4}(Epsilon .*?:) +(\S+)$", text, re.MULTILINE)
    return dict(found)


def _shown(epsilon):
    value = math.inf if epsilon["infinite"] else epsilon["value"]
    return accounting.round_up(value)


def _letters(text):
    """What is left where lines may be broken anywhere."""
    return "".join(text.split())


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_text_equals_card(make, accountant):
    model, card = _model(make), _card(make)
    text = tf_dpfp.privacy_statement(model, DELTA, accountant)
    assert card.statement(accountant) == text
    # From JSON alone, too.
    again = cards.PrivacyCard(json.loads(card.to_json()))
    assert again.statement(accountant) == text
    # Every figure of one is in the other, and no other.
    figures = {
        f["label"]: f["epsilon"][accountant] for f in card.fields["figures"]
    }
    if any(figure["value"] is None for figure in figures.values()):
        # Not computed: the text has the other accountant's.
        assert card.fields["adjacency"]["name"] == "replace_one"
        figures = {
            f["label"]: f["epsilon"]["rdp"] for f in card.fields["figures"]
        }
    printed = _printed(text)
    assert {label: _shown(e) for label, e in figures.items()} == printed
    # So is every sentence, but what the statement does not know of.
    words = _letters(text)
    said = [
        *card.fields["explanations"],
        *card.fields["not_covered"],
        *(w["words"] for w in card.fields["warnings"]),
        *(i for w in card.fields["warnings"] for i in w["items"]),
    ]
    markdown = _letters(card.to_markdown())
    for sentence in map(_letters, said):
        assert sentence in words and sentence in markdown


def test_epsilons_are_those_of_the_accountant(make):
    model, card = _model(make), _card(make)
    for accountant in ("rdp", "pld"):
        field = card.fields["epsilon"][accountant]
        epsilon = tf_dpfp.compute_epsilon(model, DELTA, accountant)
        if card.epsilon(accountant) is None:
            assert field["reason"] and not field["infinite"]
            assert card.fields["adjacency"]["name"] == "replace_one"
        else:
            assert card.epsilon(accountant) == epsilon
            assert field["infinite"] == math.isinf(epsilon)
            assert bool(field["reason"]) == math.isinf(epsilon)
    mu = card.fields["gaussian_dp"]
    assert mu["exact"] or mu["reason"]


def test_units_adjacencies_mechanisms_and_clip_norms():
    def of(make):
        fields = _card(make).fields
        return (
            fields["unit"]["protects"],
            fields["unit"]["most_examples_in_a_step"],
            fields["adjacency"]["name"],
            fields["mechanism"]["name"],
            fields["clip_norms"]["gradients"],
            fields["clip_norms"]["representations"],
        )

    rows = {"dp_representation_clip": 1.5}
    all_norms = {"all": 1.0}
    assert of(common.sums) == (
        *("example", None, "add_or_remove", "gradients", all_norms, None),
    )
    assert of(common.persons) == (
        *("person", 3, "add_or_remove", "gradients", all_norms, None),
    )
    for make, name, norms in (
        (common.representations, "representations", None),
        (common.joint, "joint", all_norms),
    ):
        *found, of_rows = of(make)
        assert found == ["example", None, "replace_one", name, norms]
        assert list(of_rows.values()) == list(rows.values())


def test_steps_come_back_exactly(make):
    assert _card(make).record.entries == tuple(
        accounting.Record(tuple(tf_dpfp.ledger(_model(make)))).entries
    )


def test_another_delta_needs_no_model():
    for make in (common.persons, common.joint, common.trained_before):
        again = cards.PrivacyCard(json.loads(_card(make).to_json()))
        expected = tf_dpfp.privacy_card(_model(make), 1e-6).to_json()
        assert again.at_delta(1e-6).to_json() == expected


def test_a_small_delta_has_no_pld():
    card = _card(common.sums).at_delta(1e-12)
    assert card.epsilon("pld") is None and card.epsilon("rdp") > 0
    assert "delta" in card.fields["epsilon"]["pld"]["reason"]


def test_what_was_found_is_warned_of():
    def about(make):
        return [w["about"] for w in _card(make).fields["warnings"]]

    def status(make, topic):
        hazards = _card(make).fields["hazards"]
        return {h["topic"]: h["status"] for h in hazards}[topic]

    assert about(common.sums) == []
    assert about(common.seeded) == ["seeded"]
    assert status(common.seeded, "randomness") == "found"
    assert status(common.sums, "randomness") == "stated"
    assert about(common.trained_before) == ["trained_before"]
    assert status(common.trained_before, "composition") == "found"
    assert about(common.without_noise) == ["no_privacy"]
    assert status(common.without_noise, "privacy parameters") == "found"
    assert status(common.sums, "unit of privacy") == "open"
    assert status(common.persons, "unit of privacy") == "handled"
    assert "**SEEDED" in _card(common.seeded).to_markdown()
    assert "| yes |" in _card(common.seeded).to_markdown()


def test_seeds_themselves_are_on_no_card():
    card = _card(common.seeded)
    assert card.fields["seeds"]["seeded"]
    assert str(common.SEED) not in card.to_json()


def test_an_infinite_epsilon_has_a_reason_and_no_attack_is_stopped():
    fields = _card(common.without_noise).fields
    assert fields["epsilon"]["pld"]["infinite"]
    assert "noise multiplier 0" in fields["epsilon"]["rdp"]["reason"]
    assert fields["gaussian_dp"]["mu"] is None
    assert {r["true_positive_rate"] for r in fields["attacks"]["rates"]} == {
        1.0
    }
    assert "infinite" in _card(common.without_noise).to_markdown()


def test_persons_that_were_promised_have_figures_of_their_own():
    model = _model(common.sums)
    card = tf_dpfp.privacy_card(model, DELTA, examples_per_user=4)
    persons = card.fields["persons"]
    assert common.problems(_strict(card.to_json())) == []
    epsilon = tf_dpfp.compute_epsilon(model, DELTA, examples_per_user=4)
    assert persons["epsilon"]["rdp"]["value"] == epsilon
    assert "examples_per_user=4" in persons["epsilon"]["pld"]["reason"]
    text = tf_dpfp.privacy_statement(model, DELTA, examples_per_user=4)
    assert card.statement() == text
    for one, all_of_them in zip(
        card.fields["attacks"]["rates"],
        persons["attacks"]["rates"],
        strict=True,
    ):
        assert one["true_positive_rate"] < all_of_them["true_positive_rate"]
    # What is not computed in seconds is in no way faster where it is trivial.
    by_position = tf_dpfp.privacy_card(
        _model(common.unknown), DELTA, examples_per_user=2
    )
    assert by_position.fields["persons"]["epsilon"]["pld"]["value"] > 0
    assert by_position.fields["persons"]["gaussian_dp"]["exact"]
    with pytest.raises(ValueError, match="examples_per_user"):
        tf_dpfp.privacy_card(_model(common.joint), DELTA, examples_per_user=2)


def test_a_model_that_was_never_private_has_no_card():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="never private"):
        tf_dpfp.privacy_card(model, DELTA)


def test_a_bad_delta_is_refused():
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            tf_dpfp.privacy_card(_model(common.sums), delta)


def _report(lower_bound, adjacency="add_or_remove", unit="example"):
    return auditing.AuditReport(
        "many_runs",
        adjacency,
        0.95,
        (
            auditing.AuditPoint(DELTA, 0.1),
            auditing.AuditPoint(0.1, lower_bound),
        ),
        np.zeros(10),
        np.zeros(10, bool),
        unit=unit,
    )


def test_audits_are_compared_with_what_is_proved():
    model = _model(common.sums)
    card = tf_dpfp.privacy_card(model, DELTA, audit=_report(0.0))
    audit = card.fields["audit"]
    assert common.problems(_strict(card.to_json())) == []
    assert not audit["refuted"] and audit["scores"] == 10
    proved = tf_dpfp.compute_epsilon(model, 0.1)
    assert audit["points"][1]["proved"]["value"] == proved
    assert card.at_delta(1e-5).fields["audit"] == audit
    for bound in (proved + 0.01, math.inf):
        card = tf_dpfp.privacy_card(model, DELTA, audit=_report(bound))
        assert card.fields["audit"]["refuted"]
        assert [w["about"] for w in card.fields["warnings"]] == ["audit"]
        assert "**REFUTED" in card.to_markdown()
        assert common.problems(_strict(card.to_json())) == []
    # Of other neighbours: nothing can be said.
    other = tf_dpfp.privacy_card(
        model, DELTA, audit=_report(math.inf, "replace_one")
    )
    assert not other.fields["audit"]["refuted"]
    # Of persons, whom this training does not protect as it does examples.
    persons = tf_dpfp.privacy_card(
        model, DELTA, audit=_report(math.inf, unit="person")
    )
    assert not persons.fields["audit"]["refuted"]
    assert "by person" in persons.to_markdown()
    by_person = tf_dpfp.privacy_card(
        _model(common.persons), DELTA, audit=_report(math.inf, unit="person")
    )
    assert by_person.fields["audit"]["refuted"]
    with pytest.raises(ValueError, match="`audit` must be"):
        tf_dpfp.privacy_card(model, DELTA, audit=1.5)


def test_digests_of_data_are_on_the_card_only_if_asked_for():
    model = _model(common.sums)
    assert _card(common.sums).fields["data"] is None
    plain = tf_dpfp.privacy_card(model, DELTA, data={"x": common.X})
    (digest,) = plain.fields["data"]
    assert (digest["shape"], digest["dtype"]) == ([40, 5], "float32")
    # Whoever has the data can say that they are these: so it warns.
    assert [w["about"] for w in plain.fields["warnings"]] == ["digests"]
    keyed = tf_dpfp.privacy_card(
        model, DELTA, data={"x": common.X}, data_key=b"k" * 32
    )
    assert keyed.fields["warnings"] == []
    assert keyed.fields["data"][0]["sha256"] != digest["sha256"]
    for card in (plain, keyed):
        assert common.problems(_strict(card.to_json())) == []
        assert card.at_delta(1e-4).fields["data"] == card.fields["data"]


def test_the_digest_of_the_package_is_that_of_its_sources(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("pass\n")
    code = tf_dpfp.privacy_card(
        _model(common.sums), DELTA, sources=[script]
    ).fields["code"]
    assert (
        code["package_sha256"]
        == _card(common.sums).fields["code"]["package_sha256"]
    )
    assert code["sources"][0]["name"] == "train.py"
    assert code["versions"]["tf_dpfp"] == tf_dpfp.__version__
    assert {"keras", "tensorflow", "dp-accounting"} <= set(code["versions"])


def test_other_fields_are_no_card():
    fields = dict(_card(common.sums).fields)
    for wrong in ({}, {**fields, "schema": "tf_dpfp/privacy_card/9"}):
        with pytest.raises(ValueError, match="no privacy card"):
            cards.PrivacyCard(wrong)
    step = {**fields["steps"][0], "release": {"kind": "Unheard"}}
    with pytest.raises(ValueError, match="Update it"):
        cards.PrivacyCard({**fields, "steps": [step]}).at_delta(1e-4)


def test_objections_leave_no_guarantee_whatever_the_ledger_says():
    known = _card(common.sums).record
    record = dataclasses.replace(known, objections=("It bypassed the noise.",))
    fields = guarantees.fields_of(record, DELTA, None)
    for accountant in ("rdp", "pld"):
        epsilon = fields["epsilon"][accountant]
        assert epsilon["infinite"] and "bypassed" in epsilon["reason"]
    assert fields["attacks"]["method"] == "none"
    assert fields["gaussian_dp"]["mu"] is None
    assert fields["warnings"][0]["items"] == ["It bypassed the noise."]
    # And they stay on the card at every delta.
    card = cards.PrivacyCard(
        {
            **_card(common.sums).fields,
            "record": {
                **_card(common.sums).fields["record"],
                "objections": ["It bypassed the noise."],
            },
        }
    )
    assert card.at_delta(1e-4).epsilon() == math.inf


def test_many_kinds_of_steps_are_composed_by_rdp_alone():
    record = _card(common.sums).record
    (entry,) = record.entries
    many = accounting.Record(
        tuple(
            dataclasses.replace(entry, noise_multiplier=2.0 + i / 100)
            for i in range(40)
        )
    )
    fields = guarantees.fields_of(many, DELTA, None)
    assert "40 kinds" in fields["epsilon"]["pld"]["reason"]
    assert fields["attacks"]["method"] == "rdp"
