"""How often real images are called generated at calibrated thresholds, as they are and degraded."""

from pathlib import Path

import click
import pandas as pd

from spai.engine.calibration_file import read_calibration


@click.command()
@click.option("--scores", type=click.Path(path_type=Path), required=True, help="scores.csv")
@click.option(
    "--perturbed", type=click.Path(path_type=Path), required=True, help="scores_perturbed.csv"
)
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
def main(scores: Path, perturbed: Path, calibration: Path) -> None:
    """Read what `spai test --perturb` and `spai calibrate` wrote; print a table of rates."""
    tables = [pd.read_csv(path) for path in (scores, perturbed)]
    tables[0] = tables[0].assign(perturbation="none", level=0)
    rows = pd.concat(tables)
    rows = rows[rows["score"].notna()]
    for target in read_calibration(calibration).calibration.thresholds:
        click.echo(f"threshold {target.threshold:.6f} (target FPR {target.target_fpr:g})")
        for (kind, level), group in rows.groupby(["perturbation", "level"], sort=False):
            caught = group["score"] >= target.threshold
            real, generated = (caught[group["class"] == label] for label in (0, 1))
            click.echo(
                f"  {kind} {level:g}: FPR {real.mean():.3f} of {len(real)}, "
                f"TPR {generated.mean():.3f} of {len(generated)}"
            )


if __name__ == "__main__":
    main()
