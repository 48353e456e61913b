import pytest

from deeplight_core.config import Profile
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import CONTROLS, Cell, planned


def profile(**sections: object) -> Profile:
    return Profile.model_validate(
        {
            "sweep": {"variants": ["pretrained", "scratch"], "fractions": [0.1, 1.0], "seeds": [3, 4]},
            "controls": {"fractions": [0.1], "seeds": [3, 5]}, **sections,
        }
    )  # fmt: skip


def test_the_sweep_is_every_combination() -> None:
    cells = planned(profile(), "sweep")
    assert len(cells) == len(set(cells)) == 2 * 2 * 2
    assert Cell("", "scratch", 1.0, 4) in cells


@pytest.mark.parametrize(
    ("fraction", "text"), [(1.0, "1"), (0.01, "0.01"), (1 / 3, "0.3333333333333333"), (1e-5, "0.00001")]
)
def test_a_name_has_all_digits_of_the_fraction(fraction: float, text: str) -> None:
    assert Cell("", "scratch", fraction, 1).name == f"scratch-{text}-seed1"
    assert float(text) == fraction


@pytest.mark.parametrize("name", ["baselines", "initialisation"])
def test_a_control_stands_beside_both_decoders_at_every_fraction(name: str) -> None:
    cells = planned(profile(), name)
    assert {c.seed for c in cells} == {3}
    assert {c.variant for c in cells} > {"pretrained", "scratch"}
    for variant in {c.variant for c in cells}:
        assert [c.fraction for c in cells if c.variant == variant] == [0.1, 1.0]


def test_the_profiles_own_initialisation_is_not_run_twice() -> None:
    for own, other in (("he", "scratch-glorot"), ("glorot", "scratch-he")):
        variants = {
            c.variant
            for c in planned(profile(routes={"supervised": {"encoder": {"initialisation": own}}}), "initialisation")
        }
        assert other in variants
        assert f"scratch-{own}" not in variants


def test_every_task_is_left_out_once_and_the_target_is_the_sweeps() -> None:
    cells = planned(profile(), "tasks")
    assert {c.target for c in cells} == {"", "GAMBLING", "MOTOR", "LANGUAGE", "SOCIAL", "RELATIONAL", "EMOTION"}
    assert len(cells) == 7 * 2
    assert {c for c in cells if not c.target} <= set(planned(profile(), "sweep"))


def test_one_task_cannot_be_left_out() -> None:
    data = {"source": {"viewing": ["cat", "dog"]}, "target": {"viewing": ["house", "shoe"]}}
    assert planned(profile(data=data), "tasks") == []


def test_seeds_repeat_the_sweep() -> None:
    cells = planned(profile(), "seeds")
    assert [c.seed for c in cells if c.variant == "scratch"] == [3, 4, 5]


def test_names_of_all_runs_differ() -> None:
    cells = {c for name in ("sweep", *CONTROLS) for c in planned(profile(), name)}
    assert len({c.name for c in cells}) == len(cells)


def test_every_variant_is_in_a_grid() -> None:
    he = profile(routes={"supervised": {"encoder": {"initialisation": "he"}}})
    every = {c.variant for name in ("sweep", *CONTROLS) for c in planned(Profile(), name)}
    every |= {c.variant for c in planned(he, "initialisation")}
    assert every == set(VARIANTS) - {"ridge"}  # of numbers, which a profile asks for by itself


def test_unknown_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no sweep 'task'; there are sweep, baselines"):
        planned(profile(), "task")


def test_folds_take_the_place_of_the_one_split() -> None:
    sweep = {"variants": ["scratch"], "fractions": [1.0], "seeds": [3], "folds": 4, "repeats": 2}
    cells = planned(profile(sweep=sweep), "sweep")
    assert [c.fold for c in cells] == list(range(1, 9))
    assert cells[4].name == "scratch-1-seed3-fold5"
    assert cells[4].pretraining is None


def test_a_cell_knows_its_pretraining() -> None:
    assert Cell("MOTOR", "frozen", 0.5, 2, 3).pretraining == ("supervised", "MOTOR", 2, 3)
    assert Cell("", "linear", 0.5, 2).pretraining is None
