"""What a type checker infers for the other public names; checked, never run."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, assert_type

from sqlalchemy import Engine, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm import Session as PlainSession

from tenure import (
    APP_CONTEXT,
    SESSION_BULK_CONTEXT,
    SESSION_CONTEXT,
    AsyncSession,
    AsyncSessionBulk,
    AsyncSessionFactory,
    Bulk,
    BulkEntry,
    BulkReport,
    CommitOutcomeUnknownError,
    ConcurrentUseError,
    ConflictError,
    Database,
    DatabaseError,
    DatabaseManager,
    DatabaseRouter,
    DeadlineExceededError,
    LoadError,
    LostWriteError,
    OpenSession,
    PartialCommitError,
    PrimaryUnavailableError,
    Proxy,
    RejectedRowsError,
    ResolutionError,
    RoutingError,
    Session,
    SessionBulk,
    SessionError,
    SessionFactory,
    Spec,
    StaleReplicaError,
    TenureError,
    UnresolvedReferenceError,
    UnwrittenValuesWarning,
    async_scoped_session,
    async_session_factory,
    async_session_manager,
    context_scope,
    current_async_session,
    current_session,
    entity_of,
    on_commit,
    on_unknown,
    retrying,
    scoped_session,
    session_factory,
    session_manager,
    spec_of,
    using,
)


class Base(DeclarativeBase):
    pass


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]


def what_is_current() -> None:
    assert_type(current_session(), Session)
    assert_type(current_async_session(), AsyncSession)
    session = SESSION_CONTEXT.get()
    if session is not None and isinstance(session, PlainSession):
        session.commit()
    variables: list[ContextVar[Any]] = [APP_CONTEXT, SESSION_BULK_CONTEXT]
    assert_type(len(variables), int)
    with using("default"):
        pass


def databases() -> None:
    manager = DatabaseManager({"default": "sqlite://"}, routers=[DatabaseRouter()])
    assert_type(manager["default"], URL)
    assert_type(manager.engines["default"], Engine)
    assert_type(manager.is_migration_allowed("default", "shop"), bool)
    db = Database("sqlite://", on_joined="wait", joined_timeout=1.5, on_missing="raise")
    assert_type(db.manager.urls, dict[str, URL])
    assert_type(db.ping(), dict[str, bool])
    for each in db.report():
        assert_type(each, OpenSession)
        assert_type(each.age, float)


def registries(manager: DatabaseManager) -> None:
    scoped = session_factory(routing=manager, scoped=True, scopefunc=context_scope)
    assert_type(scoped, scoped_session[Session])
    assert_type(scoped(), Session)
    asynchronous = async_session_factory(routing=manager, scoped=True)
    assert_type(asynchronous, async_scoped_session[AsyncSession])
    factories: tuple[SessionFactory, AsyncSessionFactory] = scoped, asynchronous
    assert_type(len(factories), int)


def sessions(session: Session) -> None:
    found = session.scalars(select(City)).all()
    assert_type(found[0].code, str)
    assert_type(session.get(City, 1), City | None)
    session.commit(expire=False)


async def async_sessions(session: AsyncSession) -> None:
    found = (await session.scalars(select(City))).all()
    assert_type(found[0].code, str)
    assert_type(await session.get(City, 1), City | None)
    await session.commit(expire=False)


def bulks(session: Session) -> None:
    with session.bulk() as bulk:
        assert_type(bulk, SessionBulk)
        assert_type(bulk.flush(on_conflict="skip"), BulkReport)
        assert_type(bulk.discard(), None)
        both: Bulk = bulk
        for entry in both.entries():
            assert_type(entry, BulkEntry)
            assert_type(entry.entity, type[Any])


async def async_bulks(session: AsyncSession) -> None:
    async with session.bulk() as bulk:
        assert_type(bulk, AsyncSessionBulk)
        assert_type(await bulk.flush(on_conflict="skip"), BulkReport)


def references(proxy: Proxy) -> None:
    assert_type(entity_of(City), type[Any])
    assert_type(spec_of(City), type[Spec[Any]])
    assert_type(proxy.instance, Any)


def again() -> None:
    @retrying
    def bare(number: int) -> str:
        return ""

    @retrying(attempts=3, on=ConnectionError)
    def called(number: int) -> str:
        return ""

    assert_type(bare(1), str)
    assert_type(called(1), str)
    for attempt in retrying(deadline=3.0):
        with attempt, session_manager(auto_commit=True):
            assert_type(attempt.number, int)


async def again_async() -> None:
    @retrying
    async def bare(number: int) -> str:
        return ""

    assert_type(await bare(1), str)
    async for attempt in retrying():
        async with attempt, async_session_manager(auto_commit=True):
            pass


def callbacks() -> None:
    @on_commit
    @on_unknown
    def tell() -> int:
        return 1

    assert_type(tell(), int)


def errors() -> None:
    every: list[type[TenureError]] = [
        *(SessionError, ConcurrentUseError, UnresolvedReferenceError, RoutingError),
        *(StaleReplicaError, PrimaryUnavailableError, DeadlineExceededError),
        *(LostWriteError, LoadError, RejectedRowsError, DatabaseError),
        *(ResolutionError, ConflictError, CommitOutcomeUnknownError),
        *(PartialCommitError,),
    ]
    warning: type[UserWarning] = UnwrittenValuesWarning
    assert_type(len(every), int)
    assert_type(warning.__name__, str)


def what_errors_say() -> None:
    try:
        current_session()
    except ResolutionError as error:
        assert_type(error.errors(), list[dict[str, Any]])
    except PartialCommitError as error:
        assert_type(error.committed, tuple[str, ...])
    except RejectedRowsError as error:
        assert_type(error.report.rejected, int)
    except UnresolvedReferenceError as error:
        shown: Mapping[str, Any] = error.key
        assert_type(len(shown), int)
    except TenureError as error:
        assert_type(error.retryable, bool)
