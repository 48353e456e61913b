from collections import Counter

import pytest

from deeplight_core.config import Profile, differences, load_profile
from deeplight_core.data.manifest import read_manifest
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import (
    CONTROLS,
    OF_COMPARISON,
    OF_CONTRAST,
    OF_IMAGES,
    OF_TRANSFERS,
    Cell,
    changed,
    changes,
    faulted,
    planned,
    pretraining_of,
)


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


def test_some_tasks_are_left_out_if_they_are_named() -> None:
    cells = planned(profile(controls={"fractions": [0.1], "tasks": ["MOTOR"]}), "tasks")
    assert {c.target for c in cells} == {"", "MOTOR"}


def test_one_task_cannot_be_left_out() -> None:
    data = {"source": {"viewing": ["cat", "dog"]}, "target": {"viewing": ["house", "shoe"]}}
    assert planned(profile(data=data), "tasks") == []


def test_seeds_repeat_the_sweep() -> None:
    cells = planned(profile(), "seeds")
    assert [c.seed for c in cells if c.variant == "scratch"] == [3, 4, 5]


def test_names_of_all_runs_differ() -> None:
    cells = {c for name in ("sweep", *CONTROLS) for c in planned(profile(), name)}
    assert len({c.name for c in cells}) == len(cells)


def test_controls_of_a_study_without_a_source_start_from_nothing() -> None:
    alone = profile(data={"source": {}}, sweep={"variants": ["scratch", "linear"]})
    variants = {c.variant for name in CONTROLS for c in planned(alone, name)}
    assert {"scratch", "linear", "svm", "scratch-permuted"} <= variants
    assert not {v for v in variants if VARIANTS[v].start != "random"} | ({"linear-pretrained"} & variants)
    given = alone.model_copy(update={"checkpoint": "a-decoder"})
    assert "pretrained" in {c.variant for c in planned(given, "baselines")}


def test_every_variant_is_in_a_grid() -> None:
    he = profile(routes={"supervised": {"encoder": {"initialisation": "he"}}})
    every = {c.variant for name in ("sweep", *CONTROLS) for c in planned(Profile(), name)}
    every |= {c.variant for c in planned(he, "initialisation")}
    structural = load_profile("autoencoder")
    every |= {c.variant for name in ("sweep", *OF_TRANSFERS) for c in planned(faulted(structural), name)}
    for name in ("contrast", "contrast-paper"):
        every |= {c.variant for which in ("sweep", *OF_CONTRAST) for c in planned(load_profile(name), which)}
    for name in ("images", "images-paper"):
        every |= {c.variant for which in ("sweep", *OF_IMAGES) for c in planned(load_profile(name), which)}
    every |= {c.variant for which in ("sweep", *OF_COMPARISON) for c in planned(load_profile("comparison"), which)}
    downloaded = {
        v for v in VARIANTS if VARIANTS[v].route in ("medicalnet", "sfcn")
    }  # a profile names the weights' file
    assert every == set(VARIANTS) - {"ridge"} - downloaded  # ridge is of numbers, which a profile asks for by itself


def test_every_fault_is_planted_alone() -> None:
    decoded = faulted(load_profile("autoencoder"))
    cells = [cell for cell in planned(decoded, "faults") if cell.fold == 1]
    assert {cell.change for cell in cells} == {"", *(f"fault-{name}" for name in decoded.controls.faults)}
    of = {cell.change.removeprefix("fault-"): (cell, changed(decoded, cell.change)) for cell in cells}
    assert of["labels"][0].variant == "cae-permuted"
    assert of["few"][0].fraction < 1
    assert of["rounded"][1].store != decoded.store
    assert of["short"][1].origin.routes.autoencoder.pretraining.learning_rate == 1e-3
    unlike = {name: differences(decoded, own).index.tolist() for name, (_, own) in of.items()}
    assert unlike["weights"] == ["finetuning.head.class_weights"]
    assert unlike["labels"] == unlike["short"] == []
    assert faulted(profile()) == profile()


def test_blocks_are_transferred_one_after_the_other() -> None:
    cells = planned(profile(controls={"blocks": [0, 2]}), "blocks")
    assert {(c.variant, c.change) for c in cells} == {("cae", ""), ("cae", "blocks0"), ("cae", "blocks2")}
    assert changed(profile(), "blocks2").finetuning.blocks == 2
    assert pretraining_of(profile(), cells[-1]) == ("", "autoencoder", "", 3, 0)


def test_codes_are_tried_in_every_width_with_every_penalty() -> None:
    tried = profile(controls={"code_widths": [16, 64], "penalties": [0, 1e-5]})
    codes = [change for change in changes(tried) if change.startswith("code")]
    assert codes == ["code16-l1-0", "code16-l1-1e-05", "code64-l1-0", "code64-l1-1e-05"]
    own = changed(tried, codes[-1]).routes.autoencoder
    assert (own.encoder.widths, own.pretraining.l1) == ((8, 16, 32, 64), 1e-5)


def test_unknown_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no sweep 'task'; there are sweep, baselines"):
        planned(profile(), "task")


def test_folds_take_the_place_of_the_one_split() -> None:
    sweep = {"variants": ["scratch"], "fractions": [1.0], "seeds": [3], "folds": 4, "repeats": 2}
    cells = planned(profile(sweep=sweep), "sweep")
    assert [c.fold for c in cells] == list(range(1, 9))
    assert cells[4].name == "scratch-1-seed3-fold5"


CONTROLS_OF = {"fractions": [0.1], "seeds": [3, 5], "tuning_manifest": "others.csv", "learning_rates": [0.01, 0.1]}
SIMULATED = {"simulation": {"contrast": 2.5, "seed": 7}, "name": "mine", "controls": CONTROLS_OF}


def test_a_cell_knows_its_pretraining() -> None:
    assert pretraining_of(profile(), Cell("MOTOR", "frozen", 0.5, 2, 3)) == ("", "supervised", "MOTOR", 2, 3)
    assert pretraining_of(profile(), Cell("", "linear", 0.5, 2)) is None
    simulated = profile(**SIMULATED)
    for change, of_pretraining in (("x3", ""), ("people-rate0.01", "people"), ("contrast1-n3", "contrast1-n3")):
        cell = Cell("", "pretrained", 0.5, 2, change=change)
        assert pretraining_of(simulated, cell) == (of_pretraining, "supervised", "", 2, 0)


def test_changes_with_equal_pretrainings_change_nothing_that_decides_them() -> None:
    """So the trainings that start from one find it."""
    simulated = profile(**SIMULATED)
    for change in ("x3", "constant", "people-rate0.01"):
        one, other = (changed(simulated, c) for c in (change, changes(simulated)[change].pretraining))
        assert one.model_copy(update={"finetuning": other.finetuning}) == other


def test_the_control_of_training_length_triples_the_steps_and_nothing_else() -> None:
    own = profile(finetuning={"epochs": 12, "min_steps": 400, "schedule": "cosine"})
    expected = own.finetuning.model_copy(update={"epochs": 36, "min_steps": 1200})
    assert changed(own, "x3") == own.model_copy(update={"finetuning": expected})
    cells = planned(own, "steps")
    for change in ("", "x3"):
        assert [(c.variant, c.fraction) for c in cells if c.change == change] == [
            (v, f) for v in ("pretrained", "scratch") for f in (0.1, 1.0)
        ]
    assert {c.fraction for c in cells if c.change == "constant"} == {0.1}
    assert changed(own, "constant").finetuning.schedule == "constant"


def test_rates_are_tried_on_other_people_for_every_decoder_alike() -> None:
    simulated = profile(**SIMULATED, finetuning={"learning_rates": {"scratch": 0.5}})
    cells = planned(simulated, "rates")
    grids = {v: {(c.change, c.fraction, c.seed) for c in cells if c.variant == v} for v in {c.variant for c in cells}}
    assert {"pretrained", "scratch", "frozen", "shuffled"} <= set(grids)
    assert all(grid == grids["scratch"] for grid in grids.values())
    for rate in (0.01, 0.1):
        other = changed(simulated, f"people-rate{rate}")
        assert other.simulation is not None
        assert other.simulation == simulated.simulation  # the same world, other people
        assert str(other.data.manifest) == "others.csv"
        assert other.folder != simulated.folder
        assert other.data_root != simulated.data_root
        assert {other.finetuning.of(v).learning_rate for v in grids} == {rate}
    assert planned(profile(), "rates") == []  # there is nobody to choose on


def test_the_grid_of_gain_trains_each_decoder_once_for_all_it_depends_on() -> None:
    grid = {**CONTROLS_OF, "contrasts": [1, 2], "pretraining_units": [3, 10]}
    simulated = profile(**{**SIMULATED, "controls": grid})
    found = Counter((c.variant, changed(simulated, c.change).simulation.contrast) for c in planned(simulated, "gain"))  # type: ignore[union-attr]
    assert found == {(v, c): n for c in (1.0, 2.0) for v, n in (("pretrained", 2), ("scratch", 1))}
    few = changed(simulated, "contrast2-n3")
    assert few.routes.supervised.pretraining.n_units == 3
    assert few.store == changed(simulated, "contrast2-n10").store != changed(simulated, "contrast1-n3").store
    assert planned(profile(), "gain") == []


def test_looks_at_photographs_are_frozen_and_columns_alone_are_tuned() -> None:
    images = load_profile("images")
    frozen = planned(images, "conditioning")
    assert {VARIANTS[c.variant].learner for c in frozen} == {"probe"}
    assert {c.change for c in frozen} == {"", "size32", "size96", "slices1", "slices6", "inflated"}
    assert changed(images, "size96").routes.images.encoder.size == 96
    assert changed(images, "inflated").routes.images.encoder.inflated
    tuned = planned(images, "tuned")
    assert {c.change for c in tuned if c.change.startswith("alone")} == {
        f"alone-{column}" for column in ("sex", "age", "household", "income", "fluid", "smoking")
    }
    income = changed(images, "alone-income").data
    assert income.columns("target") == ["income"]
    assert list(income.levels("target")) == ["income"]
    assert changed(images, "alone-age").data.phenotypes("target") == []  # a plain number
    assert planned(load_profile("demo"), "conditioning") == []


def test_decoders_of_clips_learn_from_clips_and_all_others_from_volumes() -> None:
    own = load_profile("comparison")
    cells = planned(own, "published")
    assert {c.variant for c in cells if c.change} == {v for v in own.controls.published if v.startswith("clip")}
    assert changed(own, "clips").finetuning.clip == own.controls.clip
    assert {(c.fraction, c.seed) for c in cells} == {(f, s) for f in own.sweep.fractions for s in own.sweep.seeds}
    tuned = planned(own, "rates")
    assert set(own.controls.published) < {c.variant for c in tuned}
    grids = {
        v: {(c.change.removesuffix("-clips"), c.fraction) for c in tuned if c.variant == v} for v in ("clip", "cae")
    }
    assert grids["clip"] == grids["cae"]  # equal grids
    assert all(changed(own, c.change).finetuning.clip for c in tuned if c.variant == "clip")
    assert not any(changed(own, c.change).finetuning.clip for c in tuned if c.variant == "cae")


def test_clips_and_windows_of_the_comparison_fit_into_its_runs() -> None:
    own = load_profile("comparison")
    (tr_s,) = read_manifest(own.manifest_path)["tr_s"].unique()
    routes = own.routes
    for section in (routes.contrast, routes.clip_supervised, routes.clip_contrast):
        assert section.example.in_frames(tr_s)["encoded"] == section.example.frames
    assert routes.clip_supervised.encoder.frames == routes.clip_contrast.encoder.frames == own.controls.clip.frames
    assert own.controls.clip == routes.clip_supervised.example


def test_other_conditions_repeat_the_pre_trainings() -> None:
    own = load_profile("comparison")
    cells = [c for c in planned(own, "sensitivity") if c.variant in ("pretrained", "contrast")]
    starts = {pretraining_of(own, c) for c in cells}
    assert len(starts) == 2 * (1 + len(own.controls.sensitivity))
    assert {c.fraction for c in cells} == {max(own.controls.fractions)}
    few = changed(own, "sensitivity-people").routes
    ways = {VARIANTS[v].route for v in own.sweep.variants if VARIANTS[v].start == "checkpoint"} - {"images"}
    assert len({getattr(few, way).pretraining.n_units for way in ways}) == 1, "the condition *people* leaves a way out"
    assert planned(load_profile("demo"), "sensitivity") == planned(load_profile("demo"), "published") == []


def test_learning_rates_of_networks_for_photographs_are_tried_on_another_cohort() -> None:
    own = load_profile("images")
    cells = planned(own, "rates")
    assert {c.variant for c in cells} == {"images", "images-scratch"}
    for rate in own.controls.learning_rates:
        other = changed(own, f"people-rate{rate:g}")
        assert other.cohort is not None
        assert own.cohort is not None
        assert other.cohort == own.cohort.model_copy(update={"seed": own.controls.tuning_seed})
        assert {other.data_root, other.manifest_path}.isdisjoint({own.data_root, own.manifest_path})
        assert other.finetuning.of("images").learning_rate == rate
    assert len(cells) == 2 * len(own.controls.learning_rates) * own.sweep.folds
    assert planned(load_profile("images-ixi"), "rates") == []
