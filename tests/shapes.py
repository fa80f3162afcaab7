"""The run-time check of signatures that the tests put on every function of the package."""

from beartype import BeartypeConf, beartype

UNCHECKED = {
    *("__init__", "__call__", "fit", "sample", "posterior", "prior_precision", "sigma_noise"),
    *("_functions", "_generator"),
}


def check(function):
    """beartype, but not on constructors and public entries whose own errors for bad arguments are under test."""
    if function.__name__ in UNCHECKED:
        return function
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
