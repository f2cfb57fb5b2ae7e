"""Summarise a numeric CSV column per value of another: average, standard deviation, count."""

from pathlib import Path

import click

from spai.cli.options import FILE, PATH, command
from spai.data.tables import format_csv, reduce_column
from spai.files import replacing_text


@command()
@click.option("-i", "--input_csv", type=FILE, required=True)
@click.option("-c", "--column", required=True, help="The numbers to summarise; empty cells skip.")
@click.option("-g", "--group_by", required=True, help="The column whose values make the groups.")
@click.option("-o", "--output_csv", type=PATH, help="The CSV to write [standard output].")
@click.option("-d", "--csv_delimiter", default=",", show_default=True, help="In and out.")
def main(
    input_csv: Path, column: str, group_by: str, output_csv: Path | None, csv_delimiter: str
) -> None:
    """Write columns GROUP_BY, avg, std (of a sample; 0 for one value) and count."""
    groups = reduce_column(input_csv, column=column, group=group_by, delimiter=csv_delimiter)
    rows = [[group_by, "avg", "std", "count"]]
    for group in groups:
        avg, std = ("" if n is None else repr(n) for n in (group.avg, group.std))
        rows.append([group.group, avg, std, str(group.count)])
    text = format_csv(rows, csv_delimiter)
    if output_csv is None:
        click.echo(text, nl=False)
    else:
        with replacing_text(output_csv) as file:
            file.write(text)


if __name__ == "__main__":
    main()
