"""Runs a plan on a session and matches rows back to references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Select, and_, select
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from ...mapping import Part, Shape, columns_held, identifiers
from ...references import Proxy, instance_found, key_of, rows_found, shape_of
from ..pause_gc import paused
from ..report import Failure, Reason
from .key_tables import Guard, asked, ends_transactions, is_idle, on_clause, refusal
from .plan import BATCH, Batch, Values, batches, by_shape

Strategy = Literal["bind", "hydrate"]


class Unfound(NamedTuple):
    """A reference that was not found, and why."""

    proxy: Proxy
    reason: Reason
    #: The identities of the rows, if there are several.
    rows: Sequence[tuple[Any, ...]] = ()
    #: What was said by whoever refused.
    message: str = ""


#: For each key, what was fetched of its row; ``None`` where there is none. With
#: ``hydrate``, the instance comes last.
Rows = list[tuple[Any, ...] | None]
#: For the place of a key, all the rows that answer it, where there are several.
Several = dict[int, list[tuple[Any, ...]]]


class Outcome(NamedTuple):
    """What a look-up found."""

    #: Lets the references stand for the rows that answer them.
    record: Callable[[], None]
    #: How many references are answered.
    answered: int
    unfound: list[Unfound]
    #: The rows of values, by the id of their key.
    rows: dict[int, tuple[Any, ...]]


def part_values(
    part: Part, value: Any, row_of: Callable[[Proxy], tuple[Any, ...] | None]
) -> tuple[Any, ...] | None:
    """Give a key attribute as columns; ``None`` while it is not known."""
    if part.target is None or value is None:
        return (value,) * len(part.columns)
    if type(value) is Proxy:
        row = row_of(value)
        if row is not None:
            columns = identifiers(shape_of(value).mapper).fetched
            return tuple([row[columns.index(remote)] for remote in part.remote])
        if value._tenure_target is None:
            return None
        value = value._tenure_target
    held = columns_held(value, part.remote)
    return None if None in held else held


def resolve(
    session: Session,
    proxies: Iterable[Proxy],
    *,
    strategy: Strategy = "bind",
    of_values: Collection[int] = frozenset(),
    size: int = BATCH,
    tells_refused: bool = False,
) -> Outcome:
    """
    Look up what *proxies* name; nothing is changed.

    Args:
        of_values: The proxies (their ids) that are keys of values: whole rows are
            fetched for them, and there may be none.
        size: Keys one statement asks for.
        tells_refused: Give keys and tables that were refused as not found, instead
            of raising the error.
    """
    found: dict[int, tuple[Any, ...]] = {}
    complete: dict[int, tuple[Any, ...]] = {}
    answered: list[tuple[Sequence[Proxy], Rows]] = []
    unfound: list[Unfound] = []
    lookups = _LookUps(session, unfound if tells_refused else None)

    def row_of(proxy: Proxy) -> tuple[Any, ...] | None:
        row = found.get(id(proxy)) or complete.get(id(proxy))
        return row or proxy._tenure_row

    def columns_of(proxy: Proxy) -> tuple[Any, ...] | None:
        values: list[Any] = []
        parts = shape_of(proxy).parts
        for part, value in zip(parts, proxy._tenure_values, strict=True):
            columns = part_values(part, value, row_of)
            if columns is None:
                return None
            values.extend(columns)
        return tuple(values)

    waiting = by_shape(proxies)
    # Only keys inside other keys have to be found by the proxy they are of.
    nested = any(shape.is_nested for shape in waiting)
    count = 0
    while waiting:
        ready: list[tuple[Shape, Sequence[Proxy], Sequence[Values]]] = []
        left: dict[Shape, list[Proxy]] = {}
        for shape, members in waiting.items():
            if not shape.is_nested:
                values = [proxy._tenure_values for proxy in members]
                ready.append((shape, members, values))
                continue
            pairs = [(proxy, columns_of(proxy)) for proxy in members]
            now = [(proxy, columns) for proxy, columns in pairs if columns is not None]
            if now:
                ready.append((shape, *zip(*now, strict=True)))
            if len(now) < len(pairs):
                left[shape] = [proxy for proxy, columns in pairs if columns is None]
        if not ready:
            break
        waiting = left
        for shape, asked_for, keys in ready:
            others, mine = _apart(asked_for, keys, of_values)
            for whole in batches(shape, *mine, size=size):
                columns = whole_row(shape.mapper)
                for batch, rows, several in lookups.ask(whole, columns=columns):
                    unfound.extend(_unfound(batch, rows, several, required=False))
                    complete |= {
                        id(proxy): row
                        for place, (proxy, row) in enumerate(
                            zip(batch.proxies, rows, strict=True)
                        )
                        if row is not None and place not in several
                    }
            for whole in batches(shape, *others, size=size):
                for batch, rows, several in lookups.ask(whole, strategy):
                    if None in rows or several:
                        unfound.extend(_unfound(batch, rows, several))
                        for place in several:
                            rows[place] = None
                    count += len(rows) - rows.count(None)
                    answered.append((batch.proxies, rows))
                    if nested:
                        found |= {
                            id(proxy): row
                            for proxy, row in zip(batch.proxies, rows, strict=True)
                            if row is not None
                        }
    if strategy == "hydrate":
        _fill_subclasses(lookups, answered, size)
    # What is still waiting has a key inside that names no row.
    unfound.extend(
        Unfound(proxy, "missing")
        for members in waiting.values()
        for proxy in members
        if id(proxy) not in of_values
    )

    def record() -> None:
        with paused():
            for members, rows in answered:
                if strategy == "hydrate":
                    for proxy, row in zip(members, rows, strict=True):
                        if row is not None:
                            instance_found(proxy, row[:-1], row[-1])
                else:
                    rows_found(members, rows, session)

    return Outcome(record, count, unfound, complete)


def _fill_subclasses(
    lookups: _LookUps, answered: Iterable[tuple[Sequence[Proxy], Rows]], size: int
) -> None:
    """Load of instances what only their own class has, class by class."""
    groups: dict[Mapper[Any], dict[tuple[Any, ...], Proxy]] = {}
    for members, rows in answered:
        if not members or len(shape_of(members[0]).mapper.self_and_descendants) == 1:
            continue
        for proxy, row in zip(members, rows, strict=True):
            if row is None:
                continue
            state: Any = instance_state(row[-1])
            if state.mapper is not shape_of(proxy).mapper and _lacks(state):
                groups.setdefault(state.mapper, {})[state.key[1]] = proxy
    for mapper, instances in groups.items():
        names = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
        shape = identifiers(mapper).shape(names)
        proxies, keys = list(instances.values()), list(instances)
        for whole in batches(shape, proxies, keys, size=size):
            for _ in lookups.ask(whole, "hydrate"):
                pass


def _lacks(state: Any) -> bool:
    """Whether a column of an instance is not loaded that usually is."""
    return any(
        not prop.deferred and prop.key not in state.dict
        for prop in state.mapper.column_attrs
    )


def whole_row(mapper: Mapper[Any]) -> tuple[Any, ...]:
    """Give what a look-up fetches for a value: the usual, then every attribute."""
    return (
        *identifiers(mapper).fetched,
        *(prop.columns[0] for prop in mapper.column_attrs),
    )


def attributes_of(mapper: Mapper[Any], row: tuple[Any, ...]) -> dict[str, Any]:
    """Give a row of :func:`whole_row` by attribute."""
    names = [prop.key for prop in mapper.column_attrs]
    return dict(zip(names, row[-len(names) :], strict=True))


Guarded = Callable[[Connection, Batch], AbstractContextManager[None]]
_Keyed = tuple[Sequence[Proxy], Sequence[Values]]


def _apart(
    proxies: Sequence[Proxy], keys: Sequence[Values], of_values: Collection[int]
) -> tuple[_Keyed, _Keyed]:
    """Split keys into those of references only and those of values."""
    if not of_values:
        return (proxies, keys), ((), ())
    split: tuple[list[Any], list[Any]] = ([], [])
    for pair in zip(proxies, keys, strict=True):
        split[id(pair[0]) in of_values].append(pair)
    others, mine = (([p for p, _ in each], [k for _, k in each]) for each in split)
    return others, mine


def _unfound(
    batch: Batch, rows: Rows, several: Several, *, required: bool = True
) -> Iterator[Unfound]:
    width = len(batch.shape.primary_key)
    for place, row in enumerate(rows):
        if place in several:
            identities = [each[:width] for each in several[place]]
            yield Unfound(batch.proxies[place], "ambiguous", identities)
        elif row is None and required:
            yield Unfound(batch.proxies[place], "missing")


def failure(unfound: Unfound, locations: Iterable[Any] = ()) -> Failure:
    """Describe a reference that was not found."""
    return Failure(
        shape_of(unfound.proxy).entity,
        key_of(unfound.proxy),
        unfound.reason,
        tuple(locations),
        tuple(unfound.rows),
        unfound.message,
    )


class _LookUps:
    """
    The look-ups of one ``resolve``.

    Args:
        refused: Gets what is refused; without it, the error is raised.
    """

    def __init__(self, session: Session, refused: list[Unfound] | None) -> None:
        self.session = session
        self.refused = refused
        #: What was said, by the class whose table may not be read.
        self._denied: dict[Mapper[Any], str] = {}
        self._ended = ""
        #: Whether a transaction had begun before the first look-up in it.
        self._began: dict[Connection, bool] = {}
        self._guard: Guard | None = None

    def ask(
        self,
        batch: Batch,
        strategy: Strategy = "bind",
        columns: tuple[Any, ...] | None = None,
    ) -> Iterator[tuple[Batch, Rows, Several]]:
        """
        Look up a batch, in parts where one of its keys is refused.

        Finding one among *n* takes about twice the binary logarithm of *n*
        look-ups more.
        """
        said = self._ended or self._denied.get(batch.shape.mapper)
        if said:
            self._refuse(batch, "denied", said)
            return
        self._guard = None
        try:
            rows, several = look_up(
                self.session, batch, strategy, columns, guarded=self._guarded
            )
        except Exception as error:
            if self.refused is None:
                raise
            if not self._is_told(batch, error):
                half = len(batch.values) // 2
                for part in (batch.part(0, half), batch.part(half)):
                    yield from self.ask(part, strategy, columns)
            return
        yield batch, rows, several

    def _is_told(self, batch: Batch, error: Exception) -> bool:
        """Tell what was refused, if it is known; raise what is no refusal."""
        reason = refusal(error)
        if reason is None:
            raise error
        recovered = self._guard is None or self._guard.recovers()
        said = _said(error)
        if reason == "denied":
            self._denied[batch.shape.mapper] = said
            if not recovered:
                self._ended = f"{said} (and the transaction was ended by that)"
        elif not recovered:
            raise error
        elif len(batch.values) > 1:
            return False
        self._refuse(batch, reason, said)
        return True

    def _refuse(self, batch: Batch, reason: Reason, said: str) -> None:
        if self.refused is not None:
            self.refused.extend(Unfound(p, reason, (), said) for p in batch.proxies)

    def _guarded(
        self, connection: Connection, batch: Batch
    ) -> AbstractContextManager[None]:
        began = self._began.setdefault(connection, not is_idle(connection))
        self._guard = Guard(connection, batch, others_work=began)
        return self._guard()


def _said(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().partition("\n")[0]


def look_up(
    session: Session,
    batch: Batch,
    strategy: Strategy = "bind",
    columns: tuple[Any, ...] | None = None,
    *,
    guarded: Guarded | None = None,
) -> tuple[Rows, Several]:
    """
    Ask for the rows of one batch of keys.

    Reads only, in as many statements as the dialect needs for a batch (one,
    where it takes arrays or JSON); never flushes.

    Args:
        columns: What to fetch instead of the usual.
        guarded: Keeps a transaction usable that an error would end.
    """
    mapper = batch.shape.mapper
    wanted = identifiers(mapper).fetched if columns is None else columns
    dialect = session.get_bind(mapper).dialect
    answers: Rows = [None] * len(batch.values)
    several: Several = {}
    if not answers:
        return answers, several
    for offset, keys in asked(batch, dialect):
        statement = _statement(batch, keys, wanted, strategy)
        arguments = {"mapper": mapper, "clause": statement}
        guard: AbstractContextManager[Any] = nullcontext()
        if guarded is not None and ends_transactions(dialect):
            guard = guarded(session.connection(bind_arguments=arguments), batch)
        with session.no_autoflush, guard:
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
            place = row[0] + base
            first = answers[place]
            if first is None:
                answers[place] = answer
            else:
                several.setdefault(place, [first]).append(answer)
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
        # A collection that is joined comes in several rows of one instance.
        return result.unique().all() if strategy == "hydrate" else result.all()
    connection = session.connection(bind_arguments=arguments)
    return connection.execute(statement, parameters).all()


def _statement(
    batch: Batch, keys: Any, wanted: tuple[Any, ...], strategy: Strategy
) -> Select[Any]:
    entity = batch.shape.entity
    statement: Select[Any] = (
        select(keys.ordinal, *wanted)
        if strategy == "bind"
        # The instance knows its primary key, which comes first among them.
        else select(keys.ordinal, entity, *wanted[len(batch.shape.primary_key) :])
    )
    return statement.select_from(keys.table).join(
        entity, and_(*on_clause(batch.shape, batch.nulls, keys)), isouter=keys.outer
    )
