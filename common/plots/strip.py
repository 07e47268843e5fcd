"""The codes of several models in a row."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from common.plots.classes import class_entries, not_told_apart
from common.plots.figure import SMALL_SIZE, TEXT_SIZE, length, literal, new_figure, own_style, place
from common.plots.scatter import CLOUD_POINTS, Density, draw_cloud, draw_codes, draw_contours, not_shown, view

import numpy as np
from matplotlib.figure import Figure

WIDTH, SIDE = 2.0, 1.75  # inches from one panel to the next, and of a panel


class Plane(NamedTuple):
    """The 2-D codes of one model."""

    name: str
    codes: np.ndarray  # (n, 2), of held-out images
    prior_samples: np.ndarray  # (m, 2), z ~ p(z)
    prior_log_prob: Callable[[np.ndarray], np.ndarray] | None = None  # (k, 2) -> (k,) nats, for contours


@own_style()
def latent_strip(
    planes: Sequence[Plane],
    labels: np.ndarray | None,
    title: str,
    description: str,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """A panel a model, all on the same axes: codes by class over contours of the prior, or over samples without them.

    planes: one or more, with names that differ. labels: (n,) class numbers of the images, the same for all models, or
    None for one colour. class_names: the name of class k at index k, else its number.
    """
    priors = [plane.prior_log_prob and Density(plane.prior_samples, plane.prior_log_prob) for plane in planes]
    clouds = [cloud for plane in planes for cloud in (plane.codes, plane.prior_samples)]
    limits = view(*clouds, *(prior.corners for prior in priors if prior))
    notes = not_told_apart(labels) + not_shown(limits, {f"codes of {plane.name}": plane.codes for plane in planes})
    entries = class_entries(labels, class_names)
    width = max(0.75 + WIDTH * len(planes), 6.0)
    longest = max((length(entry.get_label(), SMALL_SIZE) for entry in entries), default=0.0)
    columns = int(np.clip(width / (longest + 0.45), 1, 10))
    legend = 0.18 * -(-len(entries) // columns) + 0.12 * bool(entries)  # inches
    figure = new_figure(width, SIDE + legend + 1.1, title, description + notes)
    left, shown = 0.6 + (width - 0.75 - WIDTH * len(planes)) / 2, {}
    for number, (plane, prior) in enumerate(zip(planes, priors, strict=True)):
        axes = place(figure, left + WIDTH * number, 0.78 + legend, SIDE, SIDE)
        draw_codes(axes, plane.codes, labels, limits, ("z₁", "" if number else "z₂"), False, class_names)
        samples = plane.prior_samples[: CLOUD_POINTS // 4]
        drawn = draw_contours(axes, prior) if prior else draw_cloud(axes, samples, "prior samples")
        shown |= {entry.get_label(): entry for entry in drawn}
        axes.tick_params(labelsize=SMALL_SIZE, labelleft=number == 0)
        axes.set_title(literal(plane.name, 0.8 * SIDE, TEXT_SIZE), size=TEXT_SIZE, weight="bold")
    style = {"fontsize": SMALL_SIZE, "frameon": False, "handletextpad": 0.3, "borderaxespad": 0, "loc": "lower center"}
    height = figure.get_figheight()
    figure.legend(
        handles=list(shown.values()), ncols=len(shown), bbox_to_anchor=(0.5, (0.05 + legend) / height), **style
    )
    if entries:
        figure.legend(handles=entries, ncols=columns, bbox_to_anchor=(0.5, 0.06 / height), **style)
    return figure
