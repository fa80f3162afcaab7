"""What somebody sees first: help, what is installed, how objects show themselves, warnings said once."""

import copy
import warnings
from importlib import metadata

import pytest
import torch
from problems import classifier, regressor

from laplace_fiber import FiberLaplace, FixedRefinement, LatentAutoencoder, TrajectorySampler, info
from laplace_fiber.__main__ import main
from laplace_fiber.baselines import METHODS, SGLD
from laplace_fiber.shown import PACKAGE, Notices


def test_help_names_the_commands_and_a_missing_one_is_asked_for(capsys):
    for arguments, status in ((["--help"], 0), ([], 2), (["--version"], 0)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == status
    printed = capsys.readouterr()
    for command in ("compare", "methods", "info"):
        assert f"\n    {command} " in printed.out
    assert "required: COMMAND" in printed.err
    assert f"laplace-fiber {metadata.version('laplace-fiber')}" in printed.out


def test_info_names_versions_device_and_flavours(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for package in ("torch", "laplace-torch", "numpy"):
        assert f"{package} {metadata.version(package)}" in printed
    assert "device: CPU" in printed
    assert {FiberLaplace, *METHODS} <= set(info.registered().values())
    for method in METHODS:
        assert " ".join((*method._key, method.__name__)) in " ".join(printed.split())


def test_info_tells_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(info, "extras", lambda: {"plots": ["matplotlib"], "moon": ["torch", "cheese-of-the-moon"]})
    printed = info.describe()
    assert f"plots       matplotlib {metadata.version('matplotlib')}" in printed
    assert 'moon        without cheese-of-the-moon; run: pip install "laplace-fiber[moon]"' in printed
    monkeypatch.setattr(info, "extras", dict)
    assert "not installed; run: pip install laplace-fiber" in info.describe()


def test_extras_are_those_of_the_package_without_the_developers(monkeypatch):
    declared = ["torch", "a-b>=1; extra == 'plots'", 'c[d]; extra == "plots"', 'laplace-fiber[x]; extra == "test"']
    monkeypatch.setattr(info.metadata, "requires", lambda name: [*declared, "pytest; extra == 'test'"])
    assert info.extras() == {"plots": ["a-b", "c"]}


def test_settings_show_what_differs_from_the_defaults():
    assert repr(TrajectorySampler()) == "TrajectorySampler()"
    changed = TrajectorySampler(n_particles=8, refinement=FixedRefinement(3))
    assert repr(changed) == "TrajectorySampler(n_particles=8, refinement=FixedRefinement(max_steps=3))"
    assert repr(LatentAutoencoder(width=64)) == "LatentAutoencoder(width=64)"


def test_posteriors_show_their_settings_and_whether_they_are_fitted(classification):
    la, _ = classification
    new = FiberLaplace(la.model, "classification", prior_precision=torch.full((la.n_params,), 2.0))
    assert repr(new) == (
        f"FiberLaplace(classification, {la.n_params} weights, prior_precision='{la.n_params} values', "
        "posterior='latent', sampler=TrajectorySampler(), autoencoder=LatentAutoencoder()): "
        "not fitted; call fit(train_loader)"
    )
    assert "sampler=TrajectorySampler(n_particles=6, n_steps=8)" in repr(la)
    assert ": fitted to 40 points" in repr(la)
    assert repr(la.report) == str(la.report)
    assert repr(SGLD(la.model, "classification", n_steps=7)).startswith(
        f"SGLD(classification, {la.n_params} weights, prior_precision=1.0, n_steps=7): not fitted"
    )


def test_a_warning_is_said_once_at_the_users_line(classification):
    la, data = copy.deepcopy(classification[0]), classification[1]
    x = data.dataset.tensors[0][:3]

    def said(*actions):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for action in actions:
                action()
        return found

    la.prior_precision = 0.25
    first = said(lambda: la(x), lambda: la(x), lambda: la.sample(2))
    assert len(first) == 1
    assert "fit again" in str(first[0].message)
    assert not first[0].filename.startswith(PACKAGE)
    assert not said(lambda: la(x))
    la.temperature = 2.0
    assert ["temperature changed" in str(w.message) for w in said(lambda: la(x))] == [True]
    la.prior_precision = 0.2
    assert len(said(lambda: la(x))) == 1


def test_a_refit_may_say_it_again():
    model, data = regressor()
    la = SGLD(model, "regression", sigma_noise=0.2, n_steps=20, n_kept=4, n_chains=2)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            la.fit(data)
        la.sigma_noise = 0.3
        with pytest.warns(UserWarning, match="sigma_noise changed since fit.*fit again"):
            la.sample(2)
        la.sigma_noise = 0.2


def test_notices_of_objects_are_their_own():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for notices in (Notices(), Notices()):
            notices.say("mind the gap")
            notices.say("mind the gap")
    assert len(found) == 2


def test_a_fit_and_a_prediction_print_nothing(capsys):
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(n_particles=4, n_steps=3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        la.fit(data)
        la.optimize_prior_precision(method="gridsearch", val_loader=data, grid_size=3)
    la(data.dataset.tensors[0])
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
