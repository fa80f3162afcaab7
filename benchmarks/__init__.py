"""Benchmarks of laplace-fiber: data sets, networks, methods, metrics, runs and reports.

``python -m benchmarks --help`` lists the commands.
"""
