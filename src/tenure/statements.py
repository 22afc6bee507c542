"""What a statement does to the data: it reads, it writes, or it may do either."""

from __future__ import annotations

import re
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Select,
    Table,
    TextClause,
)
from sqlalchemy import Sequence as SequenceElement
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import CompoundSelect, StatementLambdaElement, visitors
from sqlalchemy.sql.ddl import DDLElement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    False_,
    Null,
    True_,
)
from sqlalchemy.sql.functions import FunctionElement, next_value
from sqlalchemy.sql.selectable import GenerativeSelect, TextualSelect

from ._private import lock_of_select, parts_of_select, statement_of_lambda

_READ = re.compile(r"\s*\(?\s*(?:SELECT|VALUES|SHOW|TABLE|DESCRIBE)\b", re.IGNORECASE)
_WRITE = re.compile(
    r"\s*(?:INSERT|UPDATE|DELETE|REPLACE|MERGE|TRUNCATE|CREATE|ALTER|DROP|GRANT|REVOKE"
    r"|COPY|LOCK|VACUUM|REINDEX|REFRESH|COMMENT|RENAME)\b"
    r"|\s*WITH\b.*\b(?:INSERT\s+INTO|REPLACE\s+INTO|UPDATE|DELETE|MERGE\s+INTO)\b",
    re.IGNORECASE | re.DOTALL,
)
_WITH = re.compile(r"\s*WITH\b", re.IGNORECASE)
# The name of a CTE with its columns, which looks like a call.
_CTE = re.compile(
    r"[A-Za-z_]\w*\s*\([^()]*\)\s*AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\(",
    re.IGNORECASE,
)
# Explained, with ANALYZE also run.
_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)
_ANALYZE = re.compile(
    r"\s*EXPLAIN\s*(?:\([^()]*\bANALY[SZ]E\b[^()]*\)|ANALY[SZ]E\b(?:\s+VERBOSE\b)?)",
    re.IGNORECASE,
)
# What is no statement: literals, quoted names, comments.
_QUOTED = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"
    r"|(\$\w*\$).*?\1",
    re.DOTALL,
)
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_LOCK = re.compile(
    r"\b(?:INTO|FOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|SHARE))\b", re.IGNORECASE
)


# Functions that only read, of the standard and of the backends we know; SQLAlchemy
# does not say of its own which do.
_READING = frozenset(
    """
    abs aggregate_strings all any any_value array_agg array_length avg btrim bool_and
    bool_or cardinality cast ceil ceiling char_length coalesce concat concat_ws count
    cube cume_dist current_database current_date current_schema current_setting
    current_time current_timestamp current_user database date date_add date_format
    date_part date_sub date_trunc datetime day dense_rank distinct every exists exp extract
    first_value floor format generate_series greatest group_concat grouping_sets hex
    hour ifnull iif instr isnull jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_build_object jsonb_each jsonb_object_keys
    jsonb_path_query json_agg json_array json_array_length json_arrayagg
    json_array_elements json_array_elements_text json_build_object json_each
    json_extract json_group_array json_group_object json_object json_objectagg
    json_table json_tree json_type json_value julianday lag last_value lead least left
    length ln localtime localtimestamp locate log lower lpad ltrim make_date max md5
    median min minute mod mode month now nth_value ntile nullif octet_length
    percent_rank percentile_cont percentile_disc pg_table_size pg_total_relation_size
    pg_backend_pid pg_is_in_recovery pow power printf quote random rank
    regexp_matches regexp_replace replace reverse right rollup round row row_number
    row_to_json rpad rtrim second session_user sign some split_part sqlite_version sqrt
    stddev strftime string_agg string_to_array strpos substr substring sum sysdate
    time timestampdiff to_char to_date to_json to_jsonb to_number to_timestamp
    to_tsquery to_tsvector total translate trim trunc truncate ts_rank tuple typeof
    unicode unixepoch unnest upper user uuid variance version week width_bucket year
    """.split()
)
# What else stands before a parenthesis.
_WORDS = frozenset(
    """
    and array as between bigint by bit case char character decimal distinct else except
    filter from group having in int integer intersect interval is join lateral like
    limit materialized not numeric offset on or order over partition precision select
    set show similar table then to union using values varchar varying when where with
    within
    """.split()
)

#: What a statement does, as far as it can be told by looking at it. ``"may write"``:
#: text and functions that we do not know.
Effect = Literal["reads", "may write", "writes"]


def effect(statement: Any) -> Effect:
    """
    Return what *statement* does to the data; locking what it reads counts as writing.

    Of a statement made of text only what the text says.
    """
    if isinstance(statement, Select):
        return "reads" if reads_plainly(statement) else _of_select(statement)
    if isinstance(statement, CompoundSelect):
        return _of_select(statement)
    if isinstance(statement, (TextualSelect, FromStatement)):
        return effect(statement.element)
    if isinstance(statement, StatementLambdaElement):
        return effect(statement_of_lambda(statement))
    if isinstance(statement, TextClause):
        return _of_text(statement.text)
    if isinstance(statement, (FunctionElement, SequenceElement)):
        return _of_select(statement)
    return "writes" if isinstance(statement, (UpdateBase, DDLElement)) else "may write"


def writes(statement: Any) -> bool:
    """Whether *statement* may write, or lock what it reads."""
    return effect(statement) != "reads"


_GRAVITY: dict[Effect, int] = {"reads": 0, "may write": 1, "writes": 2}


def reads_plainly(statement: Select[Any]) -> bool:
    """Whether it selects from tables, with plain conditions, and nothing else."""
    froms, ctes, columns, joins, conditions = parts_of_select(statement)
    if froms or ctes or lock_of_select(statement) is not None:
        return False
    for part in columns:
        if type(part) not in _TABLES and not (_is_table(part) or _is_column(part)):
            return False
    for target, condition, _, _ in joins:
        if not (_is_table(target) and (condition is None or _is_plain(condition))):
            return False
    for condition in conditions:
        # In line: most compare a column with a value.
        if not (
            type(condition) is BinaryExpression
            and type(condition.right) is BindParameter
            and type(condition.left) in _COLUMNS
            and type(condition.left.table) in _TABLES
        ) and not _is_plain(condition):
            return False
    return True


def _is_plain(condition: Any) -> bool:
    """Whether *condition* compares columns and values."""
    kind = type(condition)
    if kind in _LEAVES or _is_column(condition):
        return True
    if kind is BinaryExpression:
        return _is_plain(condition.left) and _is_plain(condition.right)
    if kind is BooleanClauseList:
        return all(map(_is_plain, condition.clauses))
    return False


def _is_table(part: Any) -> bool:
    if type(part) in _TABLES:
        return True
    if isinstance(part, Table):
        _TABLES.add(type(part))
        return True
    return False


def _is_column(part: Any) -> bool:
    """Whether it is a column of a table, not of a subquery or a CTE."""
    if type(part) in _COLUMNS or isinstance(part, Column):
        _COLUMNS.add(type(part))
        return _is_table(part.table)
    return False


# Types of what is in most statements: a set of them is faster than isinstance().
_TABLES: set[type] = {Table}
_COLUMNS: set[type] = {Column}
_LEAVES: set[type] = {BindParameter, Null, True_, False_}


def _of_select(statement: Any) -> Effect:
    """Look at every part of it."""
    found: Effect = "reads"
    for part in visitors.iterate(statement):
        if isinstance(part, (UpdateBase, SequenceElement, next_value)) or (
            isinstance(part, GenerativeSelect) and lock_of_select(part) is not None
        ):
            return "writes"
        if isinstance(part, FunctionElement) and not _is_known(part):
            found = "may write"
        elif isinstance(part, TextClause):
            # A piece of a statement; what it calls is all that can be told.
            found = max(found, _of_calls(part.text), key=_GRAVITY.__getitem__)
    return found


def _is_known(function: Any) -> bool:
    return getattr(function, "name", "").lower() in _READING


def _of_text(text: str) -> Effect:
    text = _QUOTED.sub("''", text)
    if _EXPLAIN.match(text):
        analyze = _ANALYZE.match(text)
        return "reads" if analyze is None else _of_text(text[analyze.end() :])
    if _LOCK.search(text):
        return "writes"
    if _READ.match(text):
        return _of_calls(text)
    if _WRITE.match(text):
        return "writes"
    return _of_calls(_CTE.sub("AS (", text)) if _WITH.match(text) else "may write"


def _of_calls(text: str) -> Effect:
    called = {name.lower() for name in _CALL.findall(text)}
    return "reads" if called <= _READING | _WORDS else "may write"
