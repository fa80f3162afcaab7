"""Comparing methods on one trained network and its data: see :func:`compare`."""

from laplace_fiber.comparison.fits import Fitted
from laplace_fiber.comparison.methods import METHODS, Method, method
from laplace_fiber.comparison.run import PRIOR_PRECISIONS, compare
from laplace_fiber.comparison.table import Comparison
from laplace_fiber.comparison.task import Task
from laplace_fiber.comparison.tuning import Budget

__all__ = ["METHODS", "PRIOR_PRECISIONS", "Budget", "Comparison", "Fitted", "Method", "Task", "compare", "method"]
