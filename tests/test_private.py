"""What we use of SQLAlchemy beyond its public names; each test says what changed."""

from __future__ import annotations

import asyncpg
from sqlalchemy import String, create_engine
from sqlalchemy.dialects.postgresql import CITEXT

from tenure import _private


def test_variant() -> None:
    kind = String().with_variant(CITEXT(), "postgresql")
    dialects = [
        create_engine(f"{name}://").dialect for name in ("postgresql+psycopg", "sqlite")
    ]

    assert [CITEXT, String] == [type(_private.variant_of(kind, d)) for d in dialects], (
        "SQLAlchemy keeps the variants of a type elsewhere than in "
        "TypeEngine._variant_mapping: see _private.variant_of()"
    )


def test_autocommit() -> None:
    changed = (
        "SQLAlchemy says elsewhere than in Connection._is_autocommit_isolation() that a "
        "connection commits each statement: see _private.is_autocommit()"
    )
    with create_engine("sqlite://").connect() as connection:
        assert not _private.is_autocommit(connection), changed
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert _private.is_autocommit(connection), changed
    engine = create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert _private.is_autocommit(connection), changed


def test_errors_of_asyncpg() -> None:
    module = create_engine("postgresql+asyncpg://").dialect.dbapi
    errors = _private.dbapi_errors_of_asyncpg(module)

    assert module is not None
    assert errors[asyncpg.IntegrityConstraintViolationError] is module.IntegrityError, (
        "SQLAlchemy translates the errors of asyncpg elsewhere than in its module's "
        "_asyncpg_error_translate: see _private.dbapi_errors_of_asyncpg()"
    )
