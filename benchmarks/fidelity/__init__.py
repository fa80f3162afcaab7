"""How far every posterior's predictive is from long Hamiltonian Monte Carlo, at the same prior and noise.

``python -m benchmarks.fidelity --help`` lists the commands.
"""
