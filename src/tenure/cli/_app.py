"""The commands: arguments in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tenure import __version__

from ._command import DONE, INTERRUPTED, USAGE, Command, say
from ._progress import Bar

# click's error of a wrong command line: some versions of typer depend on click, others
# contain it.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="tenure",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class OnMissing(StrEnum):
    reject = "reject"
    null = "null"
    create = "create"


class OnConflict(StrEnum):
    raise_ = "raise"
    update = "update"
    skip = "skip"


class Commit(StrEnum):
    once = "once"
    batch = "batch"
    part = "part"


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"
    json = "json"
    parquet = "parquet"


class EmptyQuoted(StrEnum):
    null = "null"
    text = "text"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name; see :func:`tenure.cli.main`."""
    try:
        code = app(arguments, prog_name="tenure", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "tenure"
        message = error.format_message().strip().rstrip(".")
        message = f"{message[:1].lower()}{message[1:]}" if message else "no command"
        say(f"{command}: {message}; see {command} --help")
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else DONE


def _version(asked: bool) -> None:
    if asked:
        print(f"tenure {__version__}")
        raise typer.Exit


@app.callback()
def tenure(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version and end.",
        ),
    ] = False,
) -> None:
    """The session layer for SQLAlchemy, from the command line."""


def _max_errors(text: str) -> int | None:
    if text == "all":
        return None
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(
        f"a number of rows or 'all', not {text!r}", param_hint="--max-errors"
    )


def _header(text: str) -> str | list[str]:
    return text if text in ("exact", "loose") else text.rstrip(",").split(",")


def _character(text: str | None) -> str | None:
    return "\t" if text in ("\\t", "tab") else text


def _storage(pairs: list[str]) -> dict[str, str]:
    named = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(
                f"NAME=VALUE, not {pair!r}", param_hint="--storage-option"
            )
        named[name] = value
    return named


@app.command()
def load(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files of CSV (.csv, .tsv), JSON (.json), JSON Lines (.jsonl) or "
            "Parquet, also compressed (.gz, .bz2, .xz, .zst, .zip); patterns, folders "
            "and URLs of such. Several are read one after the other. - is standard "
            "input.",
        ),
    ],
    into: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME",
            help="The Spec that says what a row is, such as shop.schemas:OrderIn, or a "
            "mapped class.",
        ),
    ],
    url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="TENURE_URL",
            help="The URL of the database, as for SQLAlchemy.",
        ),
    ],
    on_missing: Annotated[
        OnMissing,
        typer.Option(
            help="What to do if a reference is not found: reject the row, write NULL, or "
            "create the row it refers to."
        ),
    ] = OnMissing.reject,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            help="What to do if the key of a row exists: reject the row, update what "
            "exists, or skip the row."
        ),
    ] = OnConflict.raise_,
    update_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An attribute that an update may change; may be repeated. Without it, "
            "all that the source gives.",
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where rejected rows go, as JSON Lines."),
    ] = None,
    max_errors: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            help="How many rows may be rejected; with more, nothing is written.",
        ),
    ] = "0",
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows for each statement.")
    ] = 10_000,
    commit: Annotated[
        Commit,
        typer.Option(
            help="Commit at the end, after each batch, or by each worker: its part."
        ),
    ] = Commit.once,
    start: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="LINE",
            help="Begin at this line; a load with --commit batch that failed says which. "
            "Of several files lines are counted through.",
        ),
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes of this machine that share the load: they validate, and "
            "with --commit part also write.",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The same by a cluster of Dask: tcp://scheduler:8786. Its workers need "
            "tenure, the model and the files.",
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many parts the files are cut into for them."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Load the parts that are not done of a load with --commit part that "
            "failed; it says which.",
        ),
    ] = None,
    parts_table: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The table that says which parts are done; it is made."
        ),
    ] = "tenure_parts",
    format: Annotated[
        Format | None,
        typer.Option(
            help="The format, if the name of the source does not tell; csv for -."
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Where in a JSON document the array of rows is, such as data.items.",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHAR",
            help="What is between the fields of a CSV file; \\t is a tab.",
        ),
    ] = None,
    quotechar: Annotated[
        str,
        typer.Option(
            metavar="CHAR", help="What is around fields; an empty text: nothing."
        ),
    ] = '"',
    escapechar: Annotated[
        str | None,
        typer.Option(
            metavar="CHAR", help="What takes from the next character its meaning."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of text. Without it, UTF-8 or what a byte order mark says.",
        ),
    ] = None,
    errors: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What to do with bytes that the encoding does not have: reject the "
            "row, or as in Python, such as replace.",
        ),
    ] = "reject",
    header: Annotated[
        str,
        typer.Option(
            metavar="exact|loose|NAMES",
            help="loose: case and blanks around names of columns do not count. Names "
            "with commas between: the file has no line with names.",
        ),
    ] = "exact",
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A column to leave out; may be repeated."),
    ] = None,
    skip_rows: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Lines before the header to leave out."),
    ] = 0,
    comment: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What lines begin with that are left out."),
    ] = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Blanks around fields do not count.")
    ] = False,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A text of a CSV file that means NULL; may be repeated. Without it, "
            "the empty text does.",
        ),
    ] = None,
    empty_quoted: Annotated[
        EmptyQuoted,
        typer.Option(
            help='What "" is where the empty text means NULL: that as well, or a text '
            "without characters."
        ),
    ] = EmptyQuoted.null,
    storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What the file system of a URL is told, as in fsspec; may be repeated.",
        ),
    ] = None,
    create_tables: Annotated[
        bool,
        typer.Option("--create-tables", help="Create the tables that are missing."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything, then roll back.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.")
    ] = False,
) -> int:
    """
    Load rows: validate each, resolve its references, write it.

    Exit code 0: all were loaded. 1: nothing is kept. 3: some are kept, others were
    rejected, or the database failed midway. 2: it could not begin. 130: interrupted.
    """
    limit = _max_errors(max_errors)
    bar = Bar(sources) if sys.stderr.isatty() and not as_json else None
    command = Command(rejects, as_json=as_json, bar=bar)
    shown_format = format or (Format.csv if sources == ["-"] else None)
    return command.run(
        sources,
        into,
        url,
        create_tables=create_tables,
        workers=workers,
        dask=dask,
        parts=parts,
        resume=resume,
        parts_table=parts_table,
        on_missing=on_missing.value,
        on_conflict=on_conflict.value,
        update_fields=update_field,
        rejects=rejects,
        max_errors=limit,
        batch_size=batch_size,
        commit=commit.value,
        start=start,
        dry_run=dry_run,
        format=shown_format and shown_format.value,
        path=path,
        delimiter=_character(delimiter),
        quotechar=quotechar or None,
        escapechar=escapechar,
        encoding=encoding,
        errors=errors,
        header=_header(header),
        ignore=ignore or (),
        skip_rows=skip_rows,
        comment=comment,
        trim=trim,
        null=null,
        empty_quoted=empty_quoted.value,
        storage_options=_storage(storage_option or []) or None,
    )
