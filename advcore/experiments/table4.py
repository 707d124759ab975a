"""Table 4: do adversarial examples carry over to a network trained on other images?"""

from __future__ import annotations

from .parts.halves import COUNTS, PAPER, PENALTY, test_sets, trained_on_halves
from .parts.run import Run
from .parts.tables import Outcome, Table
from .parts.transfer import cross_errors, mean_off_diagonal, noise_errors, published_rows

# Rows are the networks that the examples were made for. Columns are the networks that classify
# them: FC100-100-10, FC123-456-10, FC100-100-10'. Values are error rates in percent.
PUBLISHED = published_rows(
    {
        "FC100-100-10": (100, 26.2, 5.9),
        "FC123-456-10": (6.25, 100, 5.1),
        "FC100-100-10'": (8.2, 8.2, 100),
        "noise 0.06": (2.2, 2.6, 2.4),
        "scaled to 0.1: FC100-100-10": (100, 98, 43),
        "scaled to 0.1: FC123-456-10": (96, 100, 22),
        "scaled to 0.1: FC100-100-10'": (27, 50, 100),
        "noise 0.1": (2.6, 2.8, 2.7),
    },
    PAPER,
)
SCALED = "scaled to 0.1: "


def run(run: Run) -> Outcome:
    """Measure cross error rates of the examples themselves and with distortions scaled to 0.1."""
    count, convolutional_count = COUNTS[run.scale]
    outcome = Outcome(
        "table4",
        "Table 4: other training images, the same examples",
        "Adversarial examples of test images are made for one network (row) and shown to another "
        "(column), which may have been trained on the other half of the training set.",
        settings={"images": count, "convolutional_images": convolutional_count},
    )
    networks = trained_on_halves(run)
    images, labels = run.digits.sample("test", count)
    caption = (
        "Percent of the adversarial examples that the column's network takes for another class "
        "than their label. Models with a prime were trained on P2."
    )
    tables = []
    for name, title, options, published in (
        ("table4", "The paper's loss", PENALTY, PUBLISHED),
        ("table4_margin", "The default loss", {}, {}),
    ):
        table = Table(name, title, caption, corner="examples of")
        sets = {row: test_sets(run, row, trained, **options) for row, trained in networks.items()}
        cross_errors(table, networks, sets, published)
        if published:
            noise_errors(table, networks, images, labels, 0.0, published)
            noise_errors(table, networks, images, labels, 0.06, published)
        cross_errors(table, networks, sets, published, prefix=SCALED, scale_to=0.1)
        if published:
            noise_errors(table, networks, images, labels, 0.1, published)
            clipped = "scaled to 0.1, clipped: "
            cross_errors(table, networks, sets, {}, prefix=clipped, scale_to=0.1, clip=True)
        tables.append(table)
    outcome.tables = tables
    outcome.remarks = [_remark(tables[0])]
    outcome.finding = outcome.remarks[0]
    outcome.headline = ("table4", "FC100-100-10", "FC123-456-10")
    return outcome


def _remark(table: Table) -> str:
    rows = list(PAPER)
    published = [PUBLISHED[row, column] for row in rows for column in rows if row != column]
    published_scaled = [
        PUBLISHED[SCALED + row, column] for row in rows for column in rows if row != column
    ]
    measured = [
        cell.mean
        for row in rows
        for column in rows
        if row != column and (cell := table.cell(SCALED + row, column)) is not None
    ]
    return (
        f"Mean error on another network's examples: {mean_off_diagonal(table, rows, rows):.1f}% "
        f"(published {sum(published) / len(published):.1f}%); with distortions scaled to 0.1, "
        f"{sum(measured) / len(measured):.1f}% (published "
        f"{sum(published_scaled) / len(published_scaled):.1f}%)."
    )
