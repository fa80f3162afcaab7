"""The run-time check of signatures that the tests put on every function of the package."""

from beartype import BeartypeConf, beartype


def check(function):
    """beartype, but not on constructors and public entries whose own errors for bad arguments are under test."""
    if function.__name__ in ("__init__", "__call__", "fit", "sample", "posterior", "_functions", "_generator"):
        return function
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
