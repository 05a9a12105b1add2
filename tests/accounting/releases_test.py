import pytest

from tf_dpfp import accounting
from tf_dpfp.accounting import releases

ADD_OR_REMOVE = accounting.Adjacency.ADD_OR_REMOVE_ONE
REPLACE = accounting.Adjacency.REPLACE_ONE
WITH_LABELS = [
    kind(labels)
    for kind in (accounting.Representations, accounting.Joint)
    for labels in releases.LABEL_KINDS
]
ALL = [
    accounting.Sums(),
    accounting.EndToEnd(),
    accounting.Labels(),
    *WITH_LABELS,
    accounting.PersonRepresentations("public", 3),
    accounting.PersonRepresentations("undeclared", 3),
]


def test_sums_hide_presence_and_move_twice_as_far_by_replacement():
    sums = accounting.Sums()
    assert sums.adjacency is ADD_OR_REMOVE
    assert sums.sensitivity(ADD_OR_REMOVE) == 1.0
    assert sums.sensitivity(accounting.Adjacency.ZERO_OUT) == 1.0
    assert sums.sensitivity(REPLACE) == 2.0
    assert not sums.has_representations


@pytest.mark.parametrize("release", [*WITH_LABELS, *ALL[-2:]])
def test_representations_hide_content_alone(release):
    assert release.adjacency is REPLACE
    assert release.sensitivity(REPLACE) == 2.0
    assert release.has_representations
    with pytest.raises(ValueError, match="Nothing is proved .*ADD_OR_REMOVE"):
        release.sensitivity(ADD_OR_REMOVE)


@pytest.mark.parametrize(
    "release", [accounting.EndToEnd(), accounting.Labels()]
)
def test_what_has_no_gaussian_has_no_sensitivity(release):
    assert release.adjacency is REPLACE
    for adjacency in (ADD_OR_REMOVE, REPLACE):
        with pytest.raises(ValueError, match="Nothing is proved"):
            release.sensitivity(adjacency)


@pytest.mark.parametrize("release", ALL)
def test_private_are_all_but_undeclared_labels_and_bare_gradients(release):
    bare = (
        accounting.EndToEnd(),
        accounting.Representations("undeclared"),
        accounting.PersonRepresentations("undeclared", 3),
        accounting.Joint("undeclared"),
    )
    assert release.is_private == (release not in bare)
    sampling = (
        accounting.EveryLabel(3, 7)
        if isinstance(release, accounting.Labels)
        else accounting.UnknownSampling()
    )
    entry = accounting.LedgerEntry(sampling, 1.0, 1, release=release)
    assert entry.is_bare == (release in bare)
    assert accounting.compute_epsilon([entry], 1e-5) > 0.0


@pytest.mark.parametrize("release", ALL)
def test_representations_alone_have_a_joint_release(release):
    if isinstance(release, accounting.Representations):
        assert release.joint == accounting.Joint(release.labels)
        return
    with pytest.raises(ValueError, match="Only noised representations"):
        _ = release.joint


def test_persons_have_several_labels_and_some_examples():
    with pytest.raises(ValueError, match="A person has several labels"):
        accounting.Representations("randomized").of_persons(2)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`max_examples` must be"):
            accounting.PersonRepresentations("public", wrong)
    rows = accounting.Representations("undeclared").of_persons(2)
    assert rows == accounting.PersonRepresentations("undeclared", 2)
    assert rows.unit == "person"


@pytest.mark.parametrize("labels", ["secret", None, True, "PUBLIC", 1])
def test_labels_of_another_kind_are_refused(labels):
    for kind in (accounting.Representations, accounting.Joint):
        with pytest.raises(ValueError, match="`labels` must be one of"):
            kind(labels)


@pytest.mark.parametrize("release", ALL)
def test_kinds_are_not_mixed_up(release):
    assert [other for other in ALL if other == release] == [release]
    assert len({release, *ALL}) == len(ALL)
