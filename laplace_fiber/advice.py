"""What a fit report says of itself: a sentence for each sign that the posterior should not be trusted as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplace_fiber.fit_report import FitReport

MUCH_CLOSER, MATERIAL = 0.25, 0.02
"""Samples with less than this share of the trained network's training loss, and at least so many nats lower, fit too
closely. Small convolutional networks, whose walks make them better, end at half of it."""


def signs(report: FitReport) -> Iterator[str]:
    """One sentence for each sign that its figures show."""
    if report.distance < 0.3 * report.reach:
        yield (
            f"Samples cluster near the trained weights ({report.distance:.2g} of a reach of {report.reach:.2g}): "
            "refinement undoes the drift; allow a higher level or fewer refinement steps, or a longer reach."
        )
    if report.nll_walk[-1] - report.nll_map > 0.5:
        yield (
            f"The walk leaves the low-loss set (training NLL {report.nll_walk[-1]:.3g} at its end, "
            f"{report.nll_map:.3g} at the MAP): choose the prior precision on validation data, or allow more "
            "refinement steps or more drifts."
        )
    if report.reconstruction_error > 0.1 or abs(report.decoded_gap) > 0.05:
        yield (
            f"Decoded samples differ from the walk's states (NLL by {report.decoded_gap:+.1%}, weights by "
            f"{report.reconstruction_error:.1%}): widen the autoencoder, or use posterior='states'."
        )
    on_the_way = any(0 < position < 1 for position in report.drawn_at)  # which trajectories' ends are not
    if (report.straightness < 0.9 and on_the_way) or report.predictive_gap > 0.02:
        yield (
            f"The latent space bends the walk (straightness {report.straightness:.2f}, predictions move by "
            f"{report.predictive_gap:.3f}), which costs calibration: "
            "train the autoencoder longer, or raise lambda_minus."
        )
    if report.rejected_share > 0.5:
        yield (
            f"{report.rejected_share:.0%} of refinement steps raised the objective and were taken back: use a larger "
            "batch or a float64 model."
        )
    if report.acceptance < 0.4:
        yield (
            f"{1 - report.acceptance:.0%} of the last Hamiltonian trajectories were rejected: particles have not "
            "reached the typical set; allow more trajectories (thermal), or use a float64 model."
        )
    for part in (report.arrival, report.evidence):
        yield from part.warnings() if part else ()


def warned_of(report: FitReport) -> Iterator[str]:
    """One sentence for each sign that is warned of at fit, too."""
    if report.gradient_imbalance > 0.5:
        chance = report.n_particles**-0.5
        shared = "a pull that they share" if report.common_displacement > 2 * chance else "no sign of a shared pull"
        remedy = (
            f"prior_precision={report.balanced_prior_precision:.2g} fits the trained weights best"
            if report.balanced_prior_precision is not None
            else "train on with weight decay prior_precision / n_data on the mean loss"
        )
        yield (
            f"The network is not at a minimum of the objective for this prior_precision (gradient norm "
            f"{report.gradient_norm:.3g}, imbalance {report.gradient_imbalance:.2f}). The particles' common "
            f"displacement is {report.common_displacement:.2f} of the reach, chance {chance:.2f}: {shared}. If "
            f"predictions disappoint, {remedy}."
        )
    if report.closeness < MUCH_CLOSER and report.nll_map - report.nll_walk[-1] > MATERIAL:
        yield (
            f"Samples fit the training data much more closely than the trained network does (NLL "
            f"{report.nll_walk[-1]:.3g}, {report.nll_map:.3g} at the MAP): if it was trained on augmented data, give "
            "fit the same loader; else end the walk with exact moves (thermal), or raise the prior precision."
        )
    if report.lost_particles:
        yield (
            f"{report.lost_particles} of {report.n_particles} particles met an objective that was not finite and "
            "stopped at their last good state: use a shorter reach, a larger prior_precision, or a float64 model."
        )
