"""The scorecard as a page: one HTML file that needs nothing else."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from node.evaluation.measures import Overlap
from node.evaluation.scorecard import Scorecard

FIGURES: Final = {
    "dice": "Dice",
    "volume_error_percent": "volume error %",
    "surface_distance_mm": "surface distance mm",
    "hausdorff95_mm": "HD95 mm",
}

_TEMPLATE: Final = Environment(
    loader=PackageLoader("node.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
).get_template("scorecard.html")


def render_scorecard(scorecard: Scorecard, *, other: str = "", agreed: Mapping[str, Mapping[str, Overlap]] | None = None) -> str:
    """Answers the page of a scorecard; `agreed` (case → structure → overlap) tells how far it agrees with the run called `other`."""
    curve = scorecard.free_response.curve if scorecard.free_response else ()
    return _TEMPLATE.render(
        card=scorecard,
        latency=scorecard.latency(),
        weights=", ".join(sha256[:12] for sha256 in scorecard.weights_sha256),
        failed=[case for case in scorecard.cases if case.reason],
        summary={label: {name: figures.get(name) for name in FIGURES} for label, figures in scorecard.summary().items()},
        figures=FIGURES,
        number=_number,
        exact=_exact,
        widest=max((rate for rate, _ in curve), default=0) or 1,
        other=other,
        agreement=agreement(agreed or {}),
        pictures=[(case.name, b64encode(case.picture).decode("ascii")) for case in scorecard.cases if case.picture],
        per_case=[(case.name, label, one) for case in scorecard.cases for label, one in case.overlaps.items()],
    )


def agreement(agreed: Mapping[str, Mapping[str, Overlap]]) -> dict[str, tuple[float | None, float | None]]:
    """Answers structure → lowest Dice and largest difference of volumes in percent, over all cases."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for label in dict.fromkeys(label for overlaps in agreed.values() for label in overlaps):
        overlaps = [of_case[label] for of_case in agreed.values()]
        dices = [one.dice for one in overlaps if one.dice is not None]
        differences = [abs(one.volume_error_percent) for one in overlaps if one.volume_error_percent is not None]
        found[label] = (min(dices, default=None), max(differences, default=None))
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _exact(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"
