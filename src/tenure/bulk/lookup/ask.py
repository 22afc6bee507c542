"""
Ask for the rows of many keys in one statement.

The keys become a table of the database: a column for each column of the key, and one
with an ordinal, the position of the key in its batch. That table is joined with the
entity's, and each row comes back with the ordinal of the key that it matched::

    SELECT tenure_key.ordinal, city.id, city.code
    FROM <the keys> AS tenure_key JOIN city ON city.code = tenure_key.code

So the database alone decides which values are equal, by its types and collations, and
nothing is compared in Python. Where the keys are one parameter (JSON or arrays), the
text of a statement does not depend on how many there are, so it is compiled once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from ...errors import said
from ...mapping import Shape, identifiers
from ...references import Proxy, shape_of
from ..dialects import bind_processors, has_sql_around_values
from ..report import Reason
from .batch import (
    Answers,
    Batch,
    Builder,
    KeyTable,
    KeyTables,
    KeyValues,
    Several,
    Unfound,
)
from .mysql import has_all_letters, in_json_table
from .parameters import in_parameters
from .postgresql import in_arrays
from .refusals import Recovery, is_idle, refusal

T = TypeVar("T")

Strategy = Literal["bind", "hydrate"]

#: Keys of one look-up.
BATCH = 10_000


def by_shape(proxies: Iterable[Proxy]) -> dict[Shape, list[Proxy]]:
    """Group references by the shape of their key; order is kept."""
    groups: dict[Shape, list[Proxy]] = {}
    for proxy in proxies:
        shape = shape_of(proxy)
        group = groups.get(shape)
        if group is None:
            group = groups[shape] = []
        group.append(proxy)
    return groups


def batches(
    shape: Shape,
    proxies: Sequence[Proxy],
    values: Sequence[KeyValues],
    *,
    size: int = BATCH,
) -> Iterator[Batch]:
    """
    Group keys of one shape by where they are NULL, at most *size* in a batch.

    *values* are the columns of each key. Each key is in exactly one batch, and
    order is kept inside a group.
    """
    if not values:
        return
    groups: dict[tuple[bool, ...], tuple[Sequence[Proxy], Sequence[KeyValues]]] = {}
    if not any(None in column for column in zip(*values, strict=True)):
        groups[(False,) * len(shape.columns)] = (proxies, values)
    else:
        lists: dict[tuple[bool, ...], tuple[list[Proxy], list[KeyValues]]] = {}
        for proxy, key in zip(proxies, values, strict=True):
            nulls = tuple([value is None for value in key])
            group = lists.setdefault(nulls, ([], []))
            group[0].append(proxy)
            group[1].append(tuple([value for value in key if value is not None]))
        groups.update(lists)
    for nulls, (members, keys) in groups.items():
        for start in range(0, len(members), size):
            end = start + size
            yield Batch(shape, nulls, members[start:end], keys[start:end])


def look_up(
    session: Session,
    batch: Batch,
    strategy: Strategy = "bind",
    columns: tuple[Any, ...] | None = None,
    *,
    protection: Protection | None = None,
) -> tuple[Answers, Several]:
    """
    Ask for the rows of one batch of keys.

    Reads only, in as many statements as the dialect needs for a batch (one,
    where it takes arrays or JSON); never flushes.

    Args:
        columns: What to fetch instead of the usual.
        protection: Keeps a transaction usable that an error would end.
    """
    mapper = batch.shape.mapper
    wanted = identifiers(mapper).fetched if columns is None else columns
    dialect = session.get_bind(mapper).dialect
    answers: Answers = [None] * len(batch.values)
    several: Several = {}
    if not answers:
        return answers, several
    column_types = _column_types(batch)
    for offset, keys in _key_tables(batch, column_types, dialect):
        statement = _statement(batch, keys, wanted, strategy)
        arguments = {"mapper": mapper, "clause": statement}
        protected: AbstractContextManager[Any] = nullcontext()
        if protection is not None and dialect.name == "postgresql":
            connection = session.connection(bind_arguments=arguments)
            protected = protection(connection, column_types)
        with session.no_autoflush, protected:
            rows = _execute(session, arguments, statement, keys.parameters, strategy)
        base = offset - keys.first
        for row in rows:
            answer: Any = row[1:]
            if keys.outer and row[1] is None and answer.count(None) == len(answer):
                continue
            if strategy == "hydrate":
                # The key it has in the session, whatever was changed in it.
                identity: Any = instance_state(row[1]).key
                answer = (*identity[1], *row[2:], row[1])
            position = row[0] + base
            first = answers[position]
            if first is None:
                answers[position] = answer
            else:
                several.setdefault(position, [first]).append(answer)
    return answers, several


def _execute(
    session: Session,
    arguments: dict[str, Any],
    statement: Select[Any],
    parameters: dict[str, Any],
    strategy: Strategy,
) -> Sequence[Any]:
    # Without entities to load the ORM only adds time, but what the program hooks
    # into it (criteria of a tenant, say) holds for look-ups as well.
    if strategy == "hydrate" or session.dispatch.do_orm_execute:
        result = session.execute(statement, parameters, bind_arguments=arguments)
        # A joined collection makes several rows of one instance.
        return result.unique().all() if strategy == "hydrate" else result.all()
    connection = session.connection(bind_arguments=arguments)
    return connection.execute(statement, parameters).all()


def _statement(
    batch: Batch, keys: KeyTable, wanted: tuple[Any, ...], strategy: Strategy
) -> Select[Any]:
    shape, entity = batch.shape, batch.shape.entity
    statement: Select[Any] = (
        select(keys.ordinal, *wanted)
        if strategy == "bind"
        # The instance knows its primary key, which comes first among them.
        else select(keys.ordinal, entity, *wanted[len(shape.primary_key) :])
    )
    matches: list[Any] = []
    compared = [
        c for c, null in zip(shape.columns, batch.nulls, strict=True) if not null
    ]
    for n, (known, sent) in enumerate(zip(compared, keys.columns, strict=True)):
        matches.append(known == sent)
        if n in keys.lossy:
            matches.append(has_all_letters(known, sent))
    matches += [
        c.is_(None) for c, null in zip(shape.columns, batch.nulls, strict=True) if null
    ]
    return statement.select_from(keys.table).join(
        entity, and_(*matches), isouter=keys.outer
    )


def _column_types(batch: Batch) -> list[Any]:
    return [
        column.type
        for column, null in zip(batch.shape.columns, batch.nulls, strict=True)
        if not null
    ]


def _key_tables(
    batch: Batch, column_types: Sequence[Any], dialect: Dialect
) -> KeyTables:
    """
    Return the keys of *batch* as tables to join with, each with its offset.

    One table for a batch where the dialect can take an array or JSON; several
    of a bounded number of parameters elsewhere.

    Raises:
        sqlalchemy.exc.StatementError: A type refuses a value.
    """
    build = _BUILDERS.get(dialect.name, in_parameters)
    # Only bound parameters get the SQL that a type puts around values.
    if any(has_sql_around_values(of, dialect) for of in column_types):
        build = in_parameters
    try:
        tables = build(batch, column_types, dialect)
        return in_parameters(batch, column_types, dialect) if tables is None else tables
    except Exception as error:
        # As SQLAlchemy does with what it hands to types itself.
        raise StatementError(str(error), "look-up of keys", None, error) from error


# A number of JSON is read with less precision than one that is bound.
_JSON_SAFE = frozenset({str, int, type(None)})


def _in_json(
    batch: Batch, column_types: Sequence[Any], dialect: Dialect
) -> KeyTables | None:
    """
    Return one table, for SQLite: a JSON array.

    An outer join keeps the array the outer loop, so that each key is one probe of the index.
    A row-value IN uses no index there.
    """
    columns = list(zip(*batch.values, strict=True))
    for n, processor in enumerate(bind_processors(column_types, dialect)):
        if processor is not None:
            columns[n] = tuple(map(processor, columns[n]))
        if not _JSON_SAFE.issuperset(map(type, columns[n])):
            return None
    single = len(columns) == 1
    keys = list(columns[0]) if single else list(zip(*columns, strict=True))
    text = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    if "\\u0000" in text:
        return None  # a text of JSON ends at NUL
    table = func.json_each(bindparam("tenure_keys", type_=Text)).table_valued(
        column("key", Integer), column("value"), name="tenure_key"
    )
    value = table.c.value
    paths = [literal(f"$[{n}]", Text) for n in range(len(columns))]
    sent = [value] if single else [func.json_extract(value, path) for path in paths]
    parameters = {"tenure_keys": text}
    return [(0, KeyTable(table, table.c.key, 0, tuple(sent), parameters, outer=True))]


_BUILDERS: dict[str, Builder] = {
    "sqlite": _in_json,
    "postgresql": in_arrays,
    "mariadb": in_json_table,
    "mysql": in_json_table,
}


Protection = Callable[[Connection, Sequence[Any]], AbstractContextManager[None]]


class LookUps:
    """
    The look-ups of one ``resolve``.

    Args:
        refused: Takes what is refused; without it, the error is raised.
    """

    def __init__(self, session: Session, refused: list[Unfound] | None) -> None:
        self.session = session
        self.refused = refused
        #: The message of the refusal, by the class whose table may not be read.
        self._denied: dict[Mapper[Any], str] = {}
        #: The message of the refusal that has ended the transaction.
        self._ended = ""
        #: Whether a transaction had begun before the first look-up in it.
        self._began: dict[Connection, bool] = {}
        self._recovery: Recovery | None = None

    def ask(
        self,
        batch: Batch,
        strategy: Strategy = "bind",
        columns: tuple[Any, ...] | None = None,
    ) -> Iterator[tuple[Batch, Answers, Several]]:
        """Look up a batch, in parts where one of its keys is refused."""
        found: list[tuple[Batch, Answers, Several]] = []

        def step(some: Sequence[int]) -> Exception | None:
            part = (
                batch
                if len(some) == len(batch.values)
                else batch.part(some[0], some[-1] + 1)
            )
            message = self._ended or self._denied.get(batch.shape.mapper)
            if message:
                self._refuse(part, "denied", message)
                return None
            self._recovery = None
            try:
                answers, several = look_up(
                    self.session, part, strategy, columns, protection=self._protected
                )
            except Exception as error:
                if self.refused is None:
                    raise
                return self._refusal(part, error)
            found.append((part, answers, several))
            return None

        for n, error in refused_by_halves(range(len(batch.values)), step):
            yield from found
            found.clear()
            self._refuse(batch.part(n, n + 1), "invalid", said(error))
        yield from found

    def _refusal(self, batch: Batch, error: Exception) -> Exception | None:
        """Return the error that refused a key, ``None`` if all of them are told."""
        reason = refusal(error)
        recovered = reason and (self._recovery is None or self._recovery.recover())
        if reason == "denied":
            message = said(error)
            self._denied[batch.shape.mapper] = message
            if not recovered:
                self._ended = f"{message} (and the transaction was ended by that)"
            self._refuse(batch, reason, message)
            return None
        if not recovered:
            raise error
        return error

    def _refuse(self, batch: Batch, reason: Reason, message: str) -> None:
        if self.refused is not None:
            self.refused.extend(Unfound(p, reason, (), message) for p in batch.proxies)

    def _protected(
        self, connection: Connection, column_types: Sequence[Any]
    ) -> AbstractContextManager[None]:
        began = self._began.setdefault(connection, not is_idle(connection))
        self._recovery = Recovery(connection, column_types, others_work=began)
        return self._recovery.protected()


def refused_by_halves(
    items: Sequence[T], step: Callable[[Sequence[T]], Exception | None]
) -> Iterator[tuple[T, Exception]]:
    """
    Do *step* on all of *items*; yield each that is refused on its own, and why.

    What is refused together is done again in halves, in order. Finding one among *n*
    takes about twice the binary logarithm of *n* steps more. Iterate to the end: the
    steps are done on the way.

    Args:
        step: Returns the error of a refusal, having undone its work.
    """
    error = step(items) if items else None
    if error is None:
        return
    if len(items) == 1:
        yield items[0], error
        return
    half = len(items) // 2
    yield from refused_by_halves(items[:half], step)
    yield from refused_by_halves(items[half:], step)
