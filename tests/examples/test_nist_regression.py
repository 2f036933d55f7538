"""The main job: every StRD file is read, and every fit reaches the certified digits."""

import numpy as np
import pytest

import nist_regression as example

FILES = sorted(example.DATA.glob("*.dat"))
SETS = {path.stem: example.read_reference_set(path) for path in FILES}


def test_each_file_has_a_model_and_there_are_at_least_eight():
    assert SETS.keys() == example.MODELS.keys()
    assert len(SETS) >= 8


@pytest.mark.parametrize("name", SETS)
def test_certified_parameters_give_the_certified_residual_sum_of_squares(name):
    """Reader and model agree with NIST's own result: rounding to 11 digits leaves 10 in the sum."""
    reference = SETS[name]
    rss = np.sum(reference.residuals(reference.certified) ** 2)
    assert reference.starts.shape == (2, len(reference.certified))
    assert example.matching_digits(rss, reference.certified_rss) >= 9


def test_the_reader_takes_what_the_file_says():
    misra1a, nelson = SETS["Misra1a"], SETS["Nelson"]
    assert misra1a.formula == "y = b1*(1-exp[-b2*x]) + e"
    assert (misra1a.y[0], misra1a.x[0]) == (10.07, 77.6)
    assert (misra1a.y[-1], misra1a.x[-1]) == (81.78, 760.0)
    assert misra1a.starts.tolist() == [[500, 0.0001], [250, 0.0005]]
    assert misra1a.certified.tolist() == [2.3894212918e02, 5.5015643181e-04]
    assert nelson.x.shape == (2, 128)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Observations:                            14", "Observations: 15", "announces 15"),
        ("Residual Sum of Squares", "Sum", "not laid out"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, old, new, message):
    text = (example.DATA / "Misra1a.dat").read_text(encoding="ascii")
    damaged = tmp_path / "Misra1a.dat"
    damaged.write_text(text.replace(old, new), encoding="ascii")
    with pytest.raises(ValueError, match=message):
        example.read_reference_set(damaged)


def test_matching_digits_are_clipped_at_what_nist_prints():
    digits = example.matching_digits([1.0, 1.0 + 1e-6, 3.0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(digits, [11.0, 6.0, 0.0], rtol=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_every_fit_reaches_six_digits_from_start_1(name):
    fitted = example.fit(SETS[name])
    assert fitted.digits.min() >= 6
    assert fitted.rss_digits >= 6
    assert 0 < fitted.jacobian_calls <= fitted.model_calls


def test_the_command_prints_and_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "fits.png"
    assert example.main(["Misra1a", "Nelson", "--output", str(output)]) == 0
    assert "2 of 2 sets reach 6 certified digits." in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_set_is_refused(capsys):
    with pytest.raises(SystemExit):
        example.main(["Nelsen"])
    assert "unknown sets Nelsen; choose from Misra1a" in capsys.readouterr().err


def test_a_set_that_misses_its_digits_makes_the_command_fail(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(example.SOLVER, "max_nfev", 2)
    assert example.main(["Misra1a", "--output", str(tmp_path / "fits.png")]) == 1
    assert "0 of 1 sets" in capsys.readouterr().out
