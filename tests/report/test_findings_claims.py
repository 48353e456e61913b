"""Every claim holds, fails and cannot be tested, on tables made by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from deeplight_core.analysis.statistics import recalled
from deeplight_core.config import Profile
from deeplight_core.preparation import SimulationSettings
from deeplight_core.report import findings
from deeplight_core.report.paper import VERDICTS, Row, rows_table
from deeplight_core.routes import ROUTES

SIMULATED = Profile(name="tiny", simulation=SimulationSettings())
HOLDS, FAILS, UNTESTED = VERDICTS.values()


def verdict(claims: pd.DataFrame, words: str) -> str:
    """That of the only claim with these words."""
    (found,) = claims.loc[claims["quantity"].str.contains(words), "verdict"]
    return str(found)


# ---- what all papers share


def claims(*holds: bool | None) -> pd.DataFrame:
    return rows_table([Row("3.1", f"q{i}", "70.55%", "65.00%", "better", h) for i, h in enumerate(holds)])


def test_claims_are_counted_and_failed_ones_named() -> None:
    note = findings.claims_note(SIMULATED, claims(True, False, None, True, False))
    assert note.startswith("**Claims that hold in this run: 2 of 4.** 1 claim cannot be tested here. Not reproduced")
    assert "Not reproduced (✗): q1; q4. " in note
    assert "simulated data" in note
    assert "one seed" in note
    seeds = Profile.model_validate({"sweep": {"seeds": [1, 2]}})
    assert findings.claims_note(seeds, claims(True)) == "**Claims that hold in this run: 1 of 1.**"
    assert findings.claims_note(seeds, claims(None, None)).endswith(
        "can be tested yet.** 2 claims cannot be tested here."
    )


def test_a_verdict_has_a_mark_a_word_and_a_class() -> None:
    number = rows_table([Row("3.1", "a number", "70.55%")])
    styled = findings.claims_table(pd.concat([claims(True, False, None), number], ignore_index=True), "simulated")
    assert styled.data["verdict"].tolist() == [
        "✓ holds here", "✗ does not hold here", "○ cannot be tested here", "",
    ]  # fmt: skip
    assert styled.data["this run (simulated)"].tolist() == ["65.00%"] * 3 + ["not in this run"]
    html = styled.to_html()
    for row, name in enumerate(("holds", "fails", "untested")):
        assert f'row{row} col5 {name}"' in html
    assert 'row3 col5"' in html


# ---- Atanaszov & Ritter


def fold_values(leads: dict[str, float], change: str = "") -> pd.DataFrame:
    """AUC in five folds at two sizes: 0.6 and each variant's lead."""
    random = np.random.default_rng(len(change))
    return pd.DataFrame(
        [
            {"transfer": "other", "variant": variant, "change": change, "fraction": fraction, "seed": 1, "fold": fold,
             "n_subjects": round(40 * fraction), "n_test": 10, "target": "state", "measure": "auc",
             "value": 0.6 + lead + random.normal(0, 0.01)}
            for variant, lead in leads.items() for fraction in (0.5, 1.0) for fold in range(1, 6)
        ]
    )  # fmt: skip


TARGET = Profile.model_validate(
    {"name": "b", "data": {"root": "x/two", "source": {"T1w": {}}, "target": {"T1w": ["AD", "CN"]}},
     "sweep": {"variants": ["cae", "cae-scratch"]},
     "controls": {"faults": {"discriminative": {"title": "slower encoder", "kind": "remedy"}}}}
)  # fmt: skip
TITLES = [ROUTES[name].title for name in ("autoencoder", "multitask")]


def silhouettes(held_out: float) -> pd.DataFrame:
    noise = np.random.default_rng(round(100 * held_out)).normal(0, 0.02, 12)
    return pd.DataFrame({"unit": [f"s{i}" for i in range(12)], "held_out": True, "silhouette": held_out + noise})


def errors(shift: float) -> dict[str, pd.DataFrame]:
    random, people = np.random.default_rng(2), [f"s{i}" for i in range(8)]
    return {
        name: pd.DataFrame({"subject": people, "autoencoder": 0.02 + own + random.normal(0, 0.003, 8)})
        for name, own in (("one", 0.0), ("other", shift))
    }


def penalised(silent: float) -> dict[str, np.ndarray]:
    dense, sparse = np.ones((4, 10)), np.ones((4, 10)) * (np.arange(10) >= 10 * silent)
    return {f"code{width}-l1-{p}": code for width in (16, 64) for p, code in (("0", dense), ("1e-05", sparse))}


def atanaszov(**changed: Any) -> pd.DataFrame:
    """As the report has it, where it states something; all conjectures come true."""
    values = fold_values({"cae": -0.1, "cae-scratch": -0.1, "cae-multitask": 0.1, "cae-variational": 0.2})
    base = fold_values({"cae": 0.0}).query("fraction == 1")
    faults = pd.concat([base, fold_values({"cae": 0.2}, "fault-discriminative").query("fraction == 1")])
    of: dict[str, Any] = {
        "weights": {"one": (30, 100), "other": (20, 40)},
        "errors": errors(0.0),
        "codes": (penalised(0.6), dict(zip(penalised(0.6), (0.02, 0.019, 0.018, 0.012), strict=True))),
        "separations": dict(zip(TITLES, (silhouettes(0.0), silhouettes(0.3)), strict=True)),
        "transfers": {"other": TARGET},
        "values": values,
        "faults": (TARGET, faults),
    }
    return findings.atanaszov_claims(**of | changed)


NOTHING: dict[str, Any] = {
    "weights": {}, "errors": {}, "codes": ({}, {}), "separations": {}, "transfers": {"other": TARGET},
    "values": pd.DataFrame(columns=["transfer"]), "faults": (TARGET, pd.DataFrame(columns=["transfer"])),
}  # fmt: skip


def test_a_run_like_the_reports() -> None:
    found = atanaszov()
    assert found["verdict"].tolist() == [HOLDS] * 10 + [UNTESTED]
    said = found.set_index("quantity")["this run"]
    assert said["the strided residual autoencoder is smaller"] == "-60% weights"
    assert said["fine-tuning does not converge: two T1w → two T1w: AD or CN"].startswith("AUC 0.50 [0.4")
    assert said["autoencoding gives no useful start for the other cohorts"] == "significantly better in 0 of 2"


LOSSES = dict.fromkeys(penalised(0.6), 0.01)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("is smaller", {"weights": {"one": (31392, 62769), "other": (47794, 91688)}}),
        ("as well as", {"errors": errors(0.02)}),
        ("code sparse", {"codes": (penalised(0.0), LOSSES)}),
        ("larger code", {"codes": (penalised(0.6), LOSSES | {"code16-l1-0": 0.001})}),
        ("separates classes", {"separations": dict(zip(TITLES, (silhouettes(0.3), silhouettes(0.0)), strict=True))}),
        ("does not converge", {"values": fold_values({"cae": 0.3, "cae-scratch": 0.3})}),
        ("no useful start", {"values": fold_values({"cae": 0.3, "cae-scratch": 0.0})}),
        ("better than random", {"values": fold_values({"cae-multitask": 0.0, "cae-scratch": 0.0})}),
        ("variational", {"values": fold_values({"cae-variational": 0.0, "cae": 0.0})}),
        ("learning rates", {"faults": (TARGET, pd.concat([fold_values({"cae": 0.0}).query("fraction == 1"),
            fold_values({"cae": -0.3}, "fault-discriminative").query("fraction == 1")]))}),
    ],
)  # fmt: skip
def test_each_claim_of_the_report_can_fail(words: str, changed: dict[str, Any]) -> None:
    assert verdict(atanaszov(), words) == HOLDS
    assert verdict(atanaszov(**changed), words) == FAILS


def test_without_trainings_every_claim_of_the_report_says_what_is_missing() -> None:
    found = findings.atanaszov_claims(**NOTHING)
    assert set(found["verdict"]) == {UNTESTED}
    assert len(found) == len(atanaszov())
    assert found["this run"].str.contains("not in this run|no such data").all()


# ---- Shi et al.


def told(learnt: float, spread: float = 0.01) -> pd.DataFrame:
    means = {"learnt": learnt, "shortcut": 0.6}
    return pd.DataFrame(
        [{"way": w, "subject": f"s{i}", "score": mean + spread * (i % 3) * (w == "learnt")}
         for i in range(10) for w, mean in means.items()]
    )  # fmt: skip


def sizes(**means: list[float]) -> pd.DataFrame:
    """Six held-out subjects; every variant with 4, 12 and 50 subjects. A constant answer is right for one half."""
    rows = [
        {"variant": variant, "fraction": n / 100, "n_subjects": n, "seed": 1, "fold": 0, "task": "WM", "target": "x",
         "subject": f"s{i}", "level": "volume", "measure": "accuracy", "score": mean + 0.01 * (i - 2.5)}
        for variant, of in means.items() for n, mean in zip((4, 12, 50), of, strict=False) for i in range(6)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def converged(scored: pd.DataFrame) -> pd.DataFrame:
    answers = pd.DataFrame({"task": "WM", "state": ["a", "b", "c", "c"] * 3, "unit": [f"s{i // 4}" for i in range(12)]})
    return findings.convergence(scored, answers)


def tasks(n_above: int) -> dict[str, pd.DataFrame]:
    rows = [
        ("B", f"t{s}", f"s{i}", (0.8 if s < n_above else 0.05) + 0.01 * (i % 3)) for s in range(13) for i in range(6)
    ]
    return {"contrast": recalled(pd.DataFrame(rows, columns=["task", "state", "subject", "score"]), 1 / 13)}


def networks(**means: float) -> pd.DataFrame:
    rows = [
        {"variant": "contrast", "network": "" if name == "whole" else name, "subject": f"s{i}",
         "score": mean + 0.02 * (i % 4) + 0.01 * (i % 2) * (name != "whole")}
        for name, mean in means.items() for i in range(8)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "network", "subject", "score"])


def shi(**changed: Any) -> pd.DataFrame:
    of: dict[str, Any] = {
        "told": told(0.8),
        "found": sizes(contrast=[0.79, 0.8, 0.8], scratch=[0.3, 0.5, 0.7]),
        "raw": sizes(contrast=[0.8], scratch=[0.45]),
        "recalls": tasks(11),
        "networks": networks(whole=0.8, Visual=0.8, Limbic=0.3),
    }
    of |= changed
    scored = of["raw"].assign(score=of["raw"]["score"] + 0.001 * np.random.default_rng(0).normal(size=len(of["raw"])))
    of |= {"found": converged(of["found"]), "raw": converged(of["raw"]), "raw_gains": findings.contrast_gains(scored)}
    return findings.shi_claims(**of)


def test_a_run_like_that_of_temporal_contrast() -> None:
    found = shi().set_index("quantity")["this run"]
    assert set(shi()["verdict"]) == {HOLDS}
    assert "4 subjects against 50 subjects, of 50 at most" in found.tolist()
    assert "11 of 13" in found.tolist()
    assert found.str.startswith("80.0% [").any()


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("space and time", {"told": told(0.55)}),
        ("space and time", {"told": told(0.5, spread=0.12)}),  # a little above, its interval not
        ("fewer subjects", {"found": sizes(contrast=[0.3, 0.5, 0.8], scratch=[0.3, 0.8, 0.8])}),
        ("fewer subjects", {"found": sizes(contrast=[0.3, 0.3, 0.3], scratch=[0.3, 0.3, 0.3])}),
        ("unpreprocessed data works", {"raw": sizes(contrast=[0.5], scratch=[0.45])}),
        ("does not work", {"raw": sizes(contrast=[0.8], scratch=[0.7])}),
        ("does not work", {"raw": sizes(contrast=[0.44], scratch=[0.45])}),
        ("most tasks", {"recalls": tasks(10)}),
        ("visual", {"networks": networks(whole=0.8, Visual=0.7, Limbic=0.3)}),
        ("limbic", {"networks": networks(whole=0.8, Visual=0.8, Limbic=0.6)}),
    ],
)
def test_each_claim_on_temporal_contrast_can_fail(words: str, changed: dict[str, Any]) -> None:
    assert verdict(shi(**changed), words) == FAILS


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("space and time", {"told": []}),
        ("fewer subjects", {"found": sizes(contrast=[0.79, 0.8, 0.8], scratch=[0.3, 0.5])}),  # half a sweep
        ("fewer subjects", {"found": sizes(contrast=[0.79, 0.8, 0.8])}),
        ("does not work", {"raw": sizes(contrast=[0.8])}),
        ("most tasks", {"recalls": {}}),
        ("limbic", {"networks": networks(whole=0.8, Visual=0.8)}),
        ("visual", {"networks": networks()}),
    ],
)
def test_what_temporal_contrast_lacks_is_said(words: str, changed: dict[str, Any]) -> None:
    found = shi(**changed)
    assert verdict(found, words) == UNTESTED
    assert found.loc[found["quantity"].str.contains(words), "this run"].str.startswith("not in this run: ").all()


def test_without_trainings_no_claim_on_temporal_contrast_can_be_tested() -> None:
    empty = findings.convergence(pd.DataFrame(), pd.DataFrame())
    found = findings.shi_claims(pd.DataFrame(), empty, empty, findings.contrast_gains(pd.DataFrame()), {}, networks())
    assert set(found["verdict"]) == {UNTESTED}
    assert len(found) == len(shi())


# ---- Malik & Bzdok

PHENOTYPES = ("sex", "age", "fluid")


def phenotypes(leads: dict[str, tuple[float, float]], network: str = "images", n_folds: int = 5) -> pd.DataFrame:
    """Leads with few people and with all, of one network over the same from scratch."""
    random = np.random.default_rng(3)
    return pd.DataFrame(
        [
            {"variant": variant, "change": "", "target": target, "fraction": fraction, "seed": 1, "fold": fold,
             "n_subjects": round(200 * fraction), "n_test": 50, "measure": "auc" if target == "sex" else "r",
             "value": 0.5 + (variant == network) * lead + random.normal(0, 0.005)}
            for target, of in leads.items() for fraction, lead in zip((0.1, 1.0), of, strict=True)
            for variant in (network, f"{network}-scratch") for fold in range(1, n_folds + 1)
        ]
    )  # fmt: skip


def conditioning(shuffled: float, noise: float = 0.005) -> pd.DataFrame:
    random, means = np.random.default_rng(4), {"images-frozen": 0.9, "images-random-frozen": 0.6}
    means |= {"images-shuffled-frozen": 0.6 + shuffled, "images-statistics-frozen": 0.6}
    return pd.DataFrame(
        [
            {"variant": v, "change": "", "target": "sex", "fraction": 1.0, "fold": fold, "n_subjects": 200,
             "n_test": 50, "measure": "auc", "value": mean + random.normal(0, noise)}
            for v, mean in means.items() for fold in range(1, 6)
        ]
    )  # fmt: skip


SMALL = dict.fromkeys(PHENOTYPES, (0.3, 0.05))
NO_VALUES = phenotypes({"sex": (0.0, 0.0)})[:0]


def malik(values: pd.DataFrame | None = None, controls: pd.DataFrame | None = None) -> pd.DataFrame:
    own = pd.concat([phenotypes(SMALL), phenotypes(SMALL, "video")]) if values is None else values
    return findings.malik_claims(own, conditioning(0.05) if controls is None else controls)


def test_a_run_like_that_of_photographs_and_video() -> None:
    found = malik()
    assert found["verdict"].tolist() == [HOLDS] * 6 + [UNTESTED]
    assert found["this run"].iloc[0] == "3 of 3 (sex, age and fluid); pre-trained on photographs"
    assert found["this run"].iloc[-1] == "at most 200 people to train on"
    resnet = malik(pd.concat([phenotypes(dict.fromkeys(PHENOTYPES, (0.0, 0.0))), phenotypes(SMALL, "resnet18")]))
    assert resnet["this run"].iloc[0].endswith("; ResNet-18, pre-trained on photographs")  # the paper's own network
    assert verdict(resnet, "from photographs") == HOLDS


@pytest.mark.parametrize(
    ("words", "values", "controls"),
    [
        ("from photographs", phenotypes({**dict.fromkeys(PHENOTYPES, (0.0, 0.0)), "sex": (0.3, 0.0)}), None),
        ("from video", phenotypes({**SMALL, "sex": (0.0, 0.0), "age": (0.0, 0.0)}, "video"), None),
        ("on sex", phenotypes({**SMALL, "sex": (0.0, 0.0)}), None),
        ("on age", phenotypes({**SMALL, "age": (-0.3, 0.0)}), None),
        ("small samples", phenotypes(dict.fromkeys(PHENOTYPES, (0.05, 0.3))), None),
        ("small samples", phenotypes(dict.fromkeys(PHENOTYPES, (0.3, 0.3))), None),
        ("real world", None, conditioning(0.25)),
        ("real world", None, conditioning(0.05, noise=0.5)),
    ],
)
def test_each_claim_on_photographs_can_fail(
    words: str, values: pd.DataFrame | None, controls: pd.DataFrame | None
) -> None:
    assert verdict(malik(values, controls), words) == FAILS


def test_what_photographs_lack_is_said() -> None:
    without = malik(phenotypes(SMALL), conditioning(0.05)[:0])
    assert verdict(without, "from video") == verdict(without, "real world") == UNTESTED
    assert verdict(malik(phenotypes({"sex": (0.3, 0.0)})), "on age") == UNTESTED
    one_size = phenotypes(SMALL).query("fraction == 1")
    assert verdict(malik(one_size), "small samples") == UNTESTED
    one_split = malik(phenotypes(SMALL, n_folds=1))  # no interval, no verdict
    assert [verdict(one_split, words) for words in ("from photographs", "on sex", "small samples")] == [UNTESTED] * 3
    nothing = malik(NO_VALUES, NO_VALUES)
    assert set(nothing["verdict"]) == {UNTESTED}
    assert nothing["this run"].str.startswith("not in this run: ").all()
