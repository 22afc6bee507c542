"""A table as a connection reaches it: its name, and what happens on an INSERT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, Connection, Table, Text, bindparam, text

from ...mapping import UniqueKey, primary_key, unique_keys
from ..dialects import has_sql_around_values
from .casts import name_of
from .rows import Target


class Habits(NamedTuple):
    """What else PostgreSQL does in a table on an INSERT."""

    #: COPY is refused, or leaves something out that an INSERT does.
    takes_inserts_only: bool
    #: A trigger may change rows, or keep them out.
    has_trigger: bool
    #: The rows are in partitions, of which RETURNING gives no system columns.
    is_partitioned: bool
    #: A column has another type than in the mapping: an INSERT casts what it writes.
    has_casts: bool
    #: The sequence that alone fills the autoincrement column.
    sequence: str | None


_HABITS = text(
    # Bits of tgtype: 1 for each row, 2 before, 4 INSERT.
    "SELECT c.relkind NOT IN ('r', 'p') OR c.relhasrules OR row_security_active(c.oid) "
    # asyncpg sends COPY in binary, but has some types, and all of extensions, which
    # have numbers from 16384 on, as text only.
    # Source: asyncpg, protocol/codecs/pgproto.pyx; PostgreSQL, "OID Assignment".
    "OR (CAST(:tenure_binary AS BOOLEAN) AND EXISTS ("
    "WITH RECURSIVE used AS (SELECT atttypid AS kind FROM pg_attribute "
    "WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped "
    "UNION SELECT inner_kind FROM used JOIN pg_type t ON t.oid = used.kind, "
    "LATERAL (VALUES (t.typbasetype), (t.typelem), "
    "((SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid))) v (inner_kind) "
    "WHERE inner_kind <> 0) "
    "SELECT FROM used JOIN pg_type t ON t.oid = used.kind WHERE t.typtype = 'b' "
    "AND t.typcategory <> 'A' AND (t.oid >= 16384 OR t.typname LIKE 'reg%' "
    "OR t.typname IN ('money', 'macaddr', 'macaddr8', 'tsvector', 'tsquery', "
    "'refcursor', 'aclitem', 'txid_snapshot', 'pg_snapshot')))), "
    "EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgtype & 7 = 7), "
    "c.relkind = 'p', "
    "EXISTS (SELECT FROM unnest(:tenure_names, :tenure_kinds) said (name, kind) "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = said.name "
    "JOIN pg_type t ON t.oid = a.atttypid "
    "LEFT JOIN pg_type b ON b.oid = t.typbasetype "
    "WHERE coalesce(b.typname, t.typname) <> ALL (string_to_array(said.kind, ' '))), "
    "(SELECT s.name FROM pg_attribute a LEFT JOIN pg_attrdef d "
    "ON d.adrelid = a.attrelid AND d.adnum = a.attnum, "
    # Fails on views.
    "LATERAL (SELECT CASE WHEN c.relkind IN ('r', 'p') "
    "THEN pg_get_serial_sequence(:tenure_table, :tenure_column) END AS name) s "
    "WHERE a.attrelid = c.oid AND a.attname = :tenure_column AND (a.attidentity <> '' "
    "OR pg_get_expr(d.adbin, d.adrelid) = "
    "format('nextval(%L::regclass)', s.name::regclass::text))) "
    "FROM pg_class c WHERE c.oid = to_regclass(:tenure_table)"
).bindparams(
    bindparam("tenure_names", type_=ARRAY(Text)),
    bindparam("tenure_kinds", type_=ARRAY(Text)),
)


@dataclass(frozen=True)
class TableInDatabase:
    """A table on one connection."""

    connection: Connection
    table: Table

    @property
    def schema(self) -> str | None:
        """The schema, after the connection's ``schema_translate_map``."""
        schemas = self.connection.get_execution_options().get("schema_translate_map")
        schema: str | None = self.table.schema
        return (schemas or {}).get(schema, schema)

    @property
    def name(self) -> str:
        """The table's name with its schema, quoted for a statement."""
        prepare = self.connection.dialect.identifier_preparer
        name: str = prepare.quote(self.table.name)
        if self.schema is None:
            return name
        return f"{prepare.quote_schema(self.schema)}.{name}"

    @property
    def text(self) -> str:
        """The same for SQL without parameters."""
        return unescaped(self.connection, self.name)

    @property
    def has_sql_around_values(self) -> bool:
        """Whether a type has a ``bind_expression``, which only statements render."""
        dialect = self.connection.dialect
        return any(has_sql_around_values(of.type, dialect) for of in self.table.c)

    def unique(self, target: Target) -> UniqueKey | None:
        """
        Return what an upsert of *target* goes by; ``None``: nothing that can be named.

        That is a constraint or an index which the database checks at once.
        """
        if target.unique is not None:
            return target.unique
        key = set(target.key)
        dialect = self.connection.dialect.name
        return next(
            (
                each
                for each in [primary_key(self.table), *unique_keys(self.table)]
                if each.is_plain
                and key == set(each.columns)
                and not each.why_not_named(dialect)
            ),
            None,
        )

    def sql_of(self, element: Any) -> str:
        """Return a column, or an expression of an index, as SQL without its table."""
        dialect = self.connection.dialect
        compiler: Any = dialect.statement_compiler(dialect, None)
        sql: str = compiler.process(
            element.self_group(), include_table=False, literal_binds=True
        )
        return sql

    @cached_property
    def habits(self) -> Habits:
        """What PostgreSQL does there on an INSERT; asks it."""
        if self.has_sql_around_values:
            return _INSERTS_ONLY
        dialect = self.connection.dialect
        kinds = {column.name: name_of(column, dialect) for column in self.table.c}
        kinds = {name: kind for name, kind in kinds.items() if kind}
        counter: Any = self.table.autoincrement_column
        names = {
            "tenure_table": self.text,
            "tenure_column": None if counter is None else counter.name,
            "tenure_binary": dialect.driver == "asyncpg",
            "tenure_names": list(kinds),
            "tenure_kinds": list(kinds.values()),
        }
        found = self.connection.execute(_HABITS, names).first()
        # A table that is not there: the INSERT raises the error.
        return _INSERTS_ONLY if found is None else Habits(*found)


_INSERTS_ONLY = Habits(
    takes_inserts_only=True,
    has_trigger=False,
    is_partitioned=False,
    has_casts=False,
    sequence=None,
)


def unescaped(connection: Connection, sql: str) -> str:
    """Undo the doubling of percent signs, which drivers need in parametrized SQL."""
    is_doubled = connection.dialect.paramstyle in ("format", "pyformat")
    return sql.replace("%%", "%") if is_doubled else sql
