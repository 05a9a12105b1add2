"""Cards in files: what is written, read back, and refused."""

import json
import os
import shutil
import zipfile
from unittest import mock

import keras
import numpy as np
import pytest

import tf_dpfp
from tests import programs
from tests.cards import common
from tf_dpfp import cards
from tf_dpfp.cards import command
from tf_dpfp.cards import keras_file

pytestmark = pytest.mark.usefixtures("without_trial")

DELTA = 1e-3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, its card, and its file, which nobody changes."""
    model = common.sums()
    path = tmp_path_factory.mktemp("cards") / "model.keras"
    model.save(path)
    return model, tf_dpfp.privacy_card(model, DELTA), path


@pytest.fixture
def path(trained, tmp_path):
    return shutil.copy(trained[2], tmp_path / "model.keras")


@pytest.fixture
def card(trained):
    return trained[1]


def _members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_file_keeps_all_it_had(trained, card, path):
    before = _members(path)
    card.write(path)
    after = _members(path)
    assert json.loads(after.pop(keras_file.MEMBER))["schema"]
    assert after == before
    # The archive itself stays as it was, up to the new member.
    whole = trained[2].read_bytes()
    directory = whole.index(b"PK\x01\x02")
    with open(path, "rb") as file:
        assert file.read(directory) == whole[:directory]
    assert cards.read_card(path).to_json() == card.to_json()
    assert os.listdir(os.path.dirname(path)) == ["model.keras"]


def test_a_file_with_a_card_loads_and_trains_on(trained, card, path):
    card.write(path)
    model = keras.models.load_model(path)
    np.testing.assert_array_equal(
        model.predict(common.X, verbose=0),
        trained[0].predict(common.X, verbose=0),
    )
    tf_dpfp.make_private(model)
    assert tf_dpfp.ledger(model) == tf_dpfp.ledger(trained[0])
    # A model from a file has the same guarantee on its card.
    again = tf_dpfp.privacy_card(model, DELTA)
    assert again.fields["epsilon"] == card.fields["epsilon"]
    again.write(path)


WITHOUT = """
import sys
sys.modules["tf_dpfp"] = None
import keras
model = keras.models.load_model(sys.argv[1], compile=False)
assert model.count_params() == 12
"""


def test_a_file_with_a_card_loads_where_the_package_is_not_installed(
    card, path, tmp_path
):
    card.write(path)
    programs.run(["-c", WITHOUT, path], tmp_path, check=True)


def test_a_second_card_takes_the_place_of_the_first(card, path):
    card.write(path)
    before = _members(path)
    other = card.at_delta(1e-4)
    other.write(path)
    assert cards.read_card(path).fields["delta"] == 1e-4
    after = _members(path)
    assert list(after) == list(before)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist().count(keras_file.MEMBER) == 1
    keras.models.load_model(path)


def _rewrite(path, change):
    members = change(_members(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _other_weights(members):
    return {**members, "model.weights.h5": members["model.weights.h5"] + b"\0"}


def _other_configuration(members):
    return {**members, "config.json": members["config.json"] + b" "}


def _one_more(members):
    return {**members, "assets/words.txt": b"private"}


def _one_less(members):
    return {k: v for k, v in members.items() if k != "metadata.json"}


def _no_digests(members):
    fields = json.loads(members[keras_file.MEMBER])
    del fields["file"]
    return {**members, keras_file.MEMBER: json.dumps(fields).encode()}


@pytest.mark.parametrize(
    "change",
    [_other_weights, _other_configuration, _one_more, _one_less, _no_digests],
)
def test_a_card_of_another_state_is_not_shown(card, path, change):
    card.write(path)
    _rewrite(path, lambda members: members)
    cards.read_card(path)  # The same members in another archive.
    _rewrite(path, change)
    with pytest.raises(ValueError, match="was changed after its privacy card"):
        cards.read_card(path)


def test_the_card_of_other_steps_is_refused(card, path):
    # Of the same steps, and one more.
    steps = [dict(step) for step in card.fields["steps"]]
    steps[0]["steps"] += 1
    other = cards.PrivacyCard({**card.fields, "steps": steps})
    for wrong in (other, tf_dpfp.privacy_card(common.untrained(), DELTA)):
        with pytest.raises(ValueError, match="holds another privacy ledger"):
            wrong.write(path)
    assert keras_file.MEMBER not in _members(path)


@pytest.mark.parametrize(
    "make", [common.joint, common.randomized, common.persons]
)
def test_ledgers_of_layers_and_optimizers_are_found_in_files(make, tmp_path):
    model = make()
    card = tf_dpfp.privacy_card(model, DELTA)
    model.save(tmp_path / "model.keras")
    card.write(tmp_path / "model.keras")
    found = cards.read_card(tmp_path / "model.keras")
    assert found.statement() == tf_dpfp.privacy_statement(model, DELTA)
    model.fit(common.X, common.Y, batch_size=20, verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="has no privacy card"):
        cards.read_card(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="holds another privacy ledger"):
        card.write(tmp_path / "model.keras")


def test_a_write_that_fails_leaves_the_file(card, path, monkeypatch):
    before = _members(path)

    def fail(*args):
        raise OSError("The disk is full.")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="full"):
        card.write(path)
    monkeypatch.undo()
    assert _members(path) == before
    card.write(path)
    cards.read_card(path)


def test_json_and_markdown_files(card, tmp_path):
    card.write(tmp_path / "card.json")
    assert cards.read_card(tmp_path / "card.json").to_json() == card.to_json()
    card.write(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text() == str(card)
    for wrong in ("card.txt", "nothing/"):
        with pytest.raises(ValueError, match="A privacy card is written"):
            card.write(tmp_path / wrong)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="no privacy card"):
        cards.read_card(tmp_path / "bad.json")


def test_what_is_no_keras_file_is_refused(card, tmp_path):
    missing = tmp_path / "missing.keras"
    with pytest.raises(ValueError, match="There is no file"):
        card.write(missing)
    (tmp_path / "text.keras").write_text("weights")
    for call in (card.write, cards.read_card):
        with pytest.raises(ValueError, match="is no .keras file"):
            call(tmp_path / "text.keras")


def test_a_folder_gets_a_model_card(card, tmp_path):
    card.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text == card.to_model_card()
    card.at_delta(1e-4).write(tmp_path)  # Its own is replaced.
    (tmp_path / "README.md").write_text("# By hand\n")
    with pytest.raises(ValueError, match="was written by others"):
        card.write(tmp_path)
    # A preset of KerasHub.
    (tmp_path / "README.md").unlink()
    (tmp_path / "metadata.json").write_text("{}")
    card.write(tmp_path)
    assert 'library_name: "keras-hub"' in (tmp_path / "README.md").read_text()


def _front(text):
    yaml = pytest.importorskip("yaml")
    empty, front, rest = text.split("---\n", 2)
    assert empty == "" and rest
    return yaml.safe_load(front)


def test_the_front_of_a_model_card_is_yaml(card):
    front = _front(card.to_model_card(license='a: "b" #', tags=["- x", "yes"]))
    assert front["license"] == 'a: "b" #'
    assert front["tags"] == ["differential-privacy", "tf_dpfp", "- x", "yes"]
    guarantee = front["differential_privacy"]
    assert guarantee["epsilon"] == card.epsilon("pld")
    assert guarantee["delta"] == DELTA and guarantee["unit"] == "example"
    assert guarantee["seeded"] is False


@pytest.mark.parametrize("make", [common.representations, common.without_noise])
def test_every_number_of_the_front_is_one_in_yaml(make):
    card = tf_dpfp.privacy_card(make(), DELTA).at_delta(1e-6)
    guarantee = _front(card.to_model_card())["differential_privacy"]
    assert guarantee["delta"] == 1e-6
    assert guarantee["epsilon"] == card.epsilon(guarantee["accountant"])


def test_the_hub_reads_model_cards(card):
    hub = pytest.importorskip("huggingface_hub")
    found = hub.ModelCard(card.to_model_card(license="mit"))
    assert found.data.license == "mit"
    assert found.data.library_name == "keras"
    assert found.text.strip().startswith("<!--")
    assert "# Privacy card: sums" in found.text


def test_the_command_reads_a_card_back(card, path):
    card.write(path)
    path = str(path)
    assert command.report(path, None, "markdown") == card.to_markdown()
    assert command.report(path, None, "json") == card.to_json()
    assert command.report(path, None, "statement") == card.statement()
    assert command.report(path, None, "model_card") == card.to_model_card()
    other = command.report(path, 1e-5, "json")
    assert other == card.at_delta(1e-5).to_json()


def test_the_program(card, path, tmp_path):
    card.write(path)
    done = programs.run(
        ["-m", "tf_dpfp", "card", path, "--format=json"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == card.to_json()


def test_what_can_not_be_read_is_an_error_of_the_command(tmp_path, capsys):
    flags = mock.Mock(FLAGS=mock.Mock(delta=None, format="json"))
    (tmp_path / "other.keras").write_bytes(b"")
    with mock.patch.object(command, "flags", flags):
        status = command.run(["tf_dpfp", "card", str(tmp_path / "other.keras")])
    written = capsys.readouterr()
    assert status == 2 and written.out == ""
    assert "error: " in written.err and "is no .keras file" in written.err


def test_the_command_says_how_it_is_used(capsys):
    assert command.run(["tf_dpfp"]) == 2
    assert "usage: python -m tf_dpfp card FILE.keras" in capsys.readouterr().err
