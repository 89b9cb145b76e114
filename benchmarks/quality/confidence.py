"""How often answers are right whose tokens are likely: the calibration of `describe`, and what abstaining buys.

    vae-qwen3vl describe val_codes -o answers.jsonl --max_new_tokens 24
    python benchmarks/quality/confidence.py answers.jsonl val_codes -o vae_qwen3vl/weights/confidence.json

Right is an answer whose Sentence-BERT against one of the authors' captions is `--threshold` or more. Two ways to make
a probability of the mean probability of the tokens are compared by ten-fold cross-validation, a logistic function
(Platt) and a monotone step function (isotonic), beside the share of right answers alone; the logistic function is
written. Answers are sorted by it for the curve of coverage against accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import setup_logging
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.answer_confidence import CALIBRATION, Calibration, file_hash, platt, risk_coverage
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.evaluation.objects import from_codes
from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder, sentence_similarities
from vae_qwen3vl.trained_parts import shipped_weights

Array = npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]
Fit = Callable[[Array, Right], Callable[[Array], Array]]
FOLDS = 10
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def share_alone(means: Array, right: Right) -> Callable[[Array], Array]:
    """Return what knows nothing of an answer."""
    share = (right.sum() + 1) / (len(right) + 2)
    return lambda asked: np.full(len(asked), share)


def logistic(means: Array, right: Right) -> Callable[[Array], Array]:
    """Return Platt's function."""
    slope, intercept = platt(means, right)
    return lambda asked: 1 / (1 + np.exp(-(slope * asked + intercept)))


def isotonic(means: Array, right: Right) -> Callable[[Array], Array]:
    """Return the monotone function that fits best, kept off 0 and 1 by half an answer."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(means, kind="stable")
    levels = np.asarray(isotonic_regression(right[order].astype(float)).x)
    least = 0.5 / len(means)
    return lambda asked: np.interp(asked, means[order], levels).clip(least, 1 - least)


FITS: Mapping[str, Fit] = {"share alone": share_alone, "Platt": logistic, "isotonic": isotonic}


def cross_validated(fit: Fit, means: Array, right: Right, seed: int = 0) -> dict[str, float]:
    """Return log loss (nats), Brier score and calibration error (ten bins of equally many) of held-out folds."""
    said = np.empty(len(means))
    folds = np.random.default_rng(seed).permutation(len(means)) % FOLDS
    for fold in range(FOLDS):
        out = folds == fold
        said[out] = fit(means[~out], right[~out])(means[out])
    bins = np.array_split(np.argsort(said, kind="stable"), 10)
    return {
        "log_loss": float(-np.where(right, np.log(said), np.log1p(-said)).mean()),
        "brier": float(((said - right) ** 2).mean()),
        "calibration_error": float(sum(abs((said - right)[one].sum()) for one in bins) / len(said)),
    }


def area_under_curve(means: Array, right: Right) -> float:
    """Return how often a right answer has a higher mean probability than a wrong one."""
    above = means[right][:, None] - means[~right][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def main() -> None:
    """Fit, print and record."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("answers", type=Path, help="records of describe about the objects")
    parser.add_argument("codes", type=Path, help="folder of their codes, with captions")
    parser.add_argument("--split", default="val")
    parser.add_argument("--threshold", type=float, default=0.6, help="Sentence-BERT of a right answer (%(default)s)")
    parser.add_argument("--projector", type=Path, help="which gave the answers (default: the shipped one)")
    parser.add_argument("-o", "--output", type=Path, help=f"{CALIBRATION}, beside the projector")
    options = parser.parse_args()
    setup_logging()
    quiet_transformers()
    data = from_codes(CodeFolder(options.codes), split=options.split, most=0)
    captions = {one.name: one.captions for one in data.objects}
    lines = options.answers.read_text(encoding="utf-8").splitlines()
    records = [record for record in map(parse_json, lines) if "text" in record]
    records = [record for record in records if captions.get(Path(record["shape"]).name)]
    prompts = {record["prompt"] for record in records}
    if len(prompts) != 1:
        parser.error(f"{options.answers}: {len(prompts)} questions about objects of {options.codes}; expected one")
    means = np.array([record["mean_probability"] for record in records])
    references = [captions[Path(record["shape"]).name] for record in records]
    encoder = load_sentence_encoder()
    alike = sentence_similarities(encoder, [record["text"] for record in records], references)
    right = alike >= options.threshold
    slope, intercept = platt(means, right)
    curve = risk_coverage(means, alike, COVERAGES)
    shares = risk_coverage(means, right.astype(float), COVERAGES)
    for row, share in zip(curve, shares, strict=True):
        row["least_mean_probability"] = float(np.sort(means)[::-1][row["answers"] - 1])
        row["right"] = share["score"]
    fits = {name: cross_validated(fit, means, right) for name, fit in FITS.items()}
    numbers: dict[str, Any] = {
        "objects": len(records),
        "threshold": options.threshold,
        "sentence_model": encoder.name,
        "right": float(right.mean()),
        "sentence_bert": float(alike.mean()),
        "area_under_curve": area_under_curve(means, right),
        "rank_correlation": float(np.corrcoef(means.argsort().argsort(), alike.argsort().argsort())[0, 1]),
        "slope": slope,
        "intercept": intercept,
        "cross_validated": fits,
        "risk_coverage": curve,
    }
    print(f"{len(records)} objects, {right.mean():.1%} right; area under the curve {numbers['area_under_curve']:.3f}")
    print(f"P(right) = sigmoid({slope:.3f} * mean probability {intercept:+.3f})")
    for name, row in fits.items():
        print(f"{name:<12}", *(f"{key} {value:.3f}" for key, value in row.items()))
    for row in curve:
        print(
            f"{row['coverage']:>5.0%} Sentence-BERT {100 * row['score']:5.1f} (best order {100 * row['best']:5.1f})"
            f"  right {row['right']:.1%}  from {row['least_mean_probability']:.3f}"
        )
    if options.output is not None:
        projector = options.projector or shipped_weights()[0]
        assert projector is not None, "no projector is shipped with this installation: give --projector"
        Calibration(
            slope=slope,
            intercept=intercept,
            prompt=prompts.pop(),
            right=f"Sentence-BERT ({encoder.name}) of {options.threshold:g} or more against an author's caption",
            data=f"{len(records)} objects of {options.split}; benchmarks/quality/confidence.py",
            projector=file_hash(projector),
        ).save(options.output)
    print(write_run(options, numbers, options.split))


if __name__ == "__main__":
    main()
