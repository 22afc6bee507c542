"""
The surface we promise, and SQLAlchemy's own, of whichever version is installed.

Imports neither fixtures nor databases: ``make compat`` runs it with others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter, getattr_static, iscoroutinefunction, signature, unwrap
from typing import Any

import pytest
from sqlalchemy import orm as sqlalchemy_orm
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

import tenure

# A default that is SQLAlchemy's to choose.
ANY: Any = object()

# The promise, as one would write the signatures. A parameter of ours has the name,
# the kind and the default of the promised one; more may follow if they need not be
# given.


class Contents:
    """What each session says and does about the objects in it, without waiting."""

    def add(self, instance): ...
    def add_all(self, instances): ...
    def expire(self, instance, attribute_names=None): ...
    def expire_all(self): ...
    def expunge(self, instance): ...
    def expunge_all(self): ...
    def is_modified(self, instance, include_collections=True): ...
    def begin_nested(self): ...
    def bulk(self, *, proxy_reference=True): ...
    @classmethod
    def object_session(cls, instance): ...
    @classmethod
    def identity_key(cls): ...

    PROPERTIES = (
        "autoflush bind deleted dirty identity_map info is_active new no_autoflush "
        "routing"
    )


class Transactions:
    """What a registry leaves to the session."""

    def in_transaction(self): ...
    def in_nested_transaction(self): ...
    def get_transaction(self): ...
    def get_nested_transaction(self): ...


class Registry:
    def __call__(self, **kw): ...
    def __contains__(self, instance): ...
    def __iter__(self): ...
    def configure(self, **kwargs): ...


class Sync(Contents):
    def begin(self, nested=False): ...
    def commit(self): ...
    def rollback(self): ...
    def close(self): ...
    def reset(self): ...
    def delete(self, instance): ...
    def flush(self, objects=None): ...
    def merge(self, instance, *, load=True, options=None): ...
    def refresh(self, instance, attribute_names=None, with_for_update=None): ...
    def connection(self, bind_arguments=None, execution_options=None): ...
    def query(self, *entities, **kwargs): ...
    def execute(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    def scalar(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    def scalars(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    def get(
        self,
        entity,
        ident,
        *,
        options=None,
        populate_existing=ANY,
        with_for_update=None,
        identity_token=None,
        execution_options=ANY,
        bind_arguments=None,
    ): ...
    def get_one(
        self,
        entity,
        ident,
        *,
        options=None,
        populate_existing=ANY,
        with_for_update=None,
        identity_token=None,
        execution_options=ANY,
        bind_arguments=None,
    ): ...
    def bulk_save_objects(
        self,
        objects,
        return_defaults=False,
        update_changed_only=True,
        preserve_order=True,
    ): ...
    def bulk_insert_mappings(
        self, mapper, mappings, return_defaults=False, render_nulls=False
    ): ...
    def bulk_update_mappings(self, mapper, mappings): ...
    @classmethod
    def close_all(cls): ...


class Session(Sync, Transactions):
    def __init__(self, bind=None, routing=None, proxy=None, *args, **kwargs): ...
    def get_bind(self, mapper=None, *args, **kwargs): ...
    def prepare(self): ...
    def invalidate(self): ...
    def bind_mapper(self, mapper, bind): ...
    def bind_table(self, table, bind): ...
    def enable_relationship_loading(self, obj): ...

    PROPERTIES = f"{Contents.PROPERTIES} async_mode proxy"


class scoped_session(Sync, Registry):  # noqa: N801  # the name is SQLAlchemy's
    def __init__(self, session_factory, scopefunc=None): ...
    def remove(self): ...
    def query_property(self, query_cls=None): ...
    def get_bind(self, mapper=None): ...


class Async(Contents):
    def begin(self): ...
    async def commit(self): ...
    async def rollback(self): ...
    async def close(self): ...
    async def invalidate(self): ...
    async def delete(self, instance): ...
    async def flush(self, objects=None): ...
    async def merge(self, instance, *, load=True, options=None): ...
    async def refresh(self, instance, attribute_names=None, with_for_update=None): ...
    async def connection(self, bind_arguments=None, execution_options=None): ...
    async def execute(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    async def scalar(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    async def scalars(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    async def stream(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    async def stream_scalars(
        self, statement, params=None, *, execution_options=ANY, bind_arguments=None
    ): ...
    async def get(
        self,
        entity,
        ident,
        *,
        options=None,
        populate_existing=ANY,
        with_for_update=None,
        identity_token=None,
        execution_options=ANY,
    ): ...
    async def get_one(
        self,
        entity,
        ident,
        *,
        options=None,
        populate_existing=ANY,
        with_for_update=None,
        identity_token=None,
        execution_options=ANY,
    ): ...
    @classmethod
    async def close_all(cls): ...


class AsyncSession(Async, Transactions):
    def __init__(self, bind=None, routing=None, *args, **kwargs): ...
    def get_bind(self, mapper=None, clause=None, bind=None, **kw): ...
    async def run_sync(self, fn, *arg, **kw): ...
    async def reset(self): ...
    async def aclose(self): ...

    PROPERTIES = f"{Contents.PROPERTIES} sync_session sync_session_class"


class async_scoped_session(Async, Registry):  # noqa: N801  # as above
    def __init__(self, session_factory, scopefunc=ANY): ...
    def get_bind(self, mapper=None): ...
    async def remove(self): ...


class _Bulk:
    def __init__(self, session, *, proxy_reference=True): ...
    def add(self, instance, *, is_reference=False): ...
    def get(self, entity, *, resolved=None, scope="all"): ...

    PROPERTIES = "proxy_reference resolved session unresolved"


class SessionBulk(_Bulk):
    def resolve(self, *, raise_errors=True, scope="all", strategy="bind"): ...


class AsyncSessionBulk(_Bulk):
    async def resolve(self, *, raise_errors=True, scope="all", strategy="bind"): ...


class DatabaseManager:
    def get_engine(self, resource=None, async_mode=False): ...
    def get_read_engine(self, resource=None, async_mode=False): ...
    def get_write_engine(self, resource=None, async_mode=False): ...
    def is_migration_allowed(self, engine, package): ...
    def __contains__(self, key): ...
    def __iter__(self): ...
    def __len__(self): ...
    def __getitem__(self, key): ...

    PROPERTIES = "async_engines engines routers urls"


class DatabaseRouter:
    def get_engine(self, resource=None, **kwargs): ...
    def get_read_engine(self, resource=None, **kwargs): ...
    def get_write_engine(self, resource=None, **kwargs): ...
    def is_migration_allowed(self, engine, package, **kwargs): ...

    PROPERTIES = ""


class Functions:
    """What the package itself has."""

    @staticmethod
    def session_factory(bind=None, routing=None, scoped=False, *args, **kwargs): ...
    @staticmethod
    def async_session_factory(
        bind=None, routing=None, scoped=False, scopefunc=ANY, *args, **kwargs
    ): ...
    @staticmethod
    def session_manager(
        *, using=None, auto_commit=False, new=False, on_missing="create"
    ): ...
    @staticmethod
    def async_session_manager(
        *, using=None, auto_commit=False, new=False, on_missing="create"
    ): ...
    @staticmethod
    async def gather(*functions, limit=None): ...
    @staticmethod
    def on_commit(fn): ...
    @staticmethod
    def on_rollback(fn): ...


NAMES = [
    "APP_CONTEXT",
    "SESSION_BULK_CONTEXT",
    "SESSION_CONTEXT",
    "AsyncSessionFactory",
    "Bulk",
    "BulkEntry",
    "ConcurrentUseError",
    "Database",
    "DatabaseError",
    "Key",
    "Proxy",
    "Ref",
    "ResolutionError",
    "RoutingError",
    "TenureError",
    "SessionError",
    "SessionFactory",
    "Spec",
    "UnresolvedReferenceError",
    "current_async_session",
    "current_session",
]

# With what people already catch and check for.
DERIVED = {
    "Session": sqlalchemy_orm.Session,
    "scoped_session": sqlalchemy_orm.scoped_session,
    "AsyncSession": sqlalchemy_asyncio.AsyncSession,
    "async_scoped_session": sqlalchemy_asyncio.async_scoped_session,
    "DatabaseError": SQLAlchemyError,
}

# Never connected. SQLAlchemy 2.0's AsyncSession has no attribute bind without one.
ASYNC_ENGINE = sqlalchemy_asyncio.create_async_engine("sqlite+aiosqlite://")

INSTANCES: dict[type[Any], Callable[[], Any]] = {
    Session: tenure.Session,
    AsyncSession: lambda: tenure.AsyncSession(ASYNC_ENGINE),
    scoped_session: lambda: tenure.session_factory(scoped=True),
    async_scoped_session: lambda: tenure.async_session_factory(
        ASYNC_ENGINE, scoped=True, scopefunc=lambda: None
    ),
    SessionBulk: lambda: tenure.SessionBulk(tenure.Session()),
    AsyncSessionBulk: lambda: tenure.AsyncSessionBulk(tenure.AsyncSession()),
    DatabaseManager: lambda: tenure.DatabaseManager("sqlite://"),
    DatabaseRouter: tenure.DatabaseRouter,
}

VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def promised(promise: type[Any]) -> Iterator[str]:
    """Name the methods of *promise*."""
    for parent in promise.__mro__[:-1]:
        for name, value in vars(parent).items():
            if callable(value) or isinstance(value, (classmethod, staticmethod)):
                yield name


def parameters(cls: Any, name: str) -> list[Parameter]:
    """Give what a caller gives to the method *name*."""
    found = list(signature(getattr(cls, name)).parameters.values())
    takes_self = isinstance(cls, type) and not isinstance(
        getattr_static(cls, name), (classmethod, staticmethod)
    )
    return found[1:] if takes_self else found


def awaited(function: Any) -> bool:
    return iscoroutinefunction(unwrap(function))


def complaints(wanted: Sequence[Parameter], found: Sequence[Parameter]) -> list[str]:
    """Say what a call that keeps to *wanted* may not get with *found*."""
    by_name = {parameter.name: parameter for parameter in found}
    kinds = {parameter.kind for parameter in found}
    wrong = []
    for parameter in wanted:
        ours = by_name.get(parameter.name)
        if parameter.kind in VARIADIC:
            if parameter.kind not in kinds:
                wrong.append(f"takes no {parameter}")
        elif ours is None:
            # Handed on to SQLAlchemy.
            by_keyword = parameter.kind is Parameter.KEYWORD_ONLY
            if not (by_keyword and Parameter.VAR_KEYWORD in kinds):
                wrong.append(f"lacks {parameter.name}")
        elif ours.kind is not parameter.kind:
            wrong.append(f"{ours.name} is {ours.kind.description}")
        elif not fits(parameter.default, ours.default):
            wrong.append(f"{ours.name} is {ours.default!r} by default")
    order = positional(wanted)
    if not wrong and positional(found)[: len(order)] != order:
        wrong.append(f"takes {positional(found)}, not {order}")
    known = {parameter.name for parameter in wanted}
    return wrong + [
        f"{parameter.name} has to be given"
        for parameter in found
        if parameter.default is Parameter.empty
        and parameter.kind not in VARIADIC
        and parameter.name not in known
    ]


def fits(wanted: Any, found: Any) -> bool:
    """Say whether a call without the parameter means the same, if there may be one."""
    if wanted is Parameter.empty:
        return True
    if wanted is ANY:
        return found is not Parameter.empty
    return bool(found == wanted)


def positional(wanted: Sequence[Parameter]) -> list[str]:
    return [
        parameter.name
        for parameter in wanted
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    ]


def methods() -> Iterator[Any]:
    for promise in INSTANCES:
        for name in promised(promise):
            where = f"{promise.__name__}.{name}"
            ours = getattr(tenure, promise.__name__)
            yield pytest.param(promise, ours, name, id=where)
    for name in promised(Functions):
        yield pytest.param(Functions, tenure, name, id=name)


@pytest.mark.parametrize(("promise", "ours", "name"), list(methods()))
def test_promised(promise: Any, ours: Any, name: str) -> None:
    """Each method and function takes what we promise, and waits where we say so."""
    assert hasattr(ours, name)
    assert [] == complaints(parameters(promise, name), parameters(ours, name))
    assert awaited(getattr(promise, name)) == awaited(getattr(ours, name))


@pytest.mark.parametrize("promise", INSTANCES, ids=lambda promise: promise.__name__)
def test_properties(promise: Any) -> None:
    """Each object has the attributes we promise, before it is connected."""
    instance = INSTANCES[promise]()

    assert [] == [
        name for name in promise.PROPERTIES.split() if not hasattr(instance, name)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    """The package has what has no signature, too."""
    assert hasattr(tenure, name)


@pytest.mark.parametrize("name", DERIVED)
def test_derived(name: str) -> None:
    """Our class is one of SQLAlchemy's."""
    assert issubclass(getattr(tenure, name), DERIVED[name])


# What Python calls, and so everybody.
CALLED = [
    "__init__",
    "__call__",
    "__contains__",
    "__iter__",
    "__enter__",
    "__exit__",
    "__aenter__",
    "__aexit__",
]


def sqlalchemys() -> Iterator[Any]:
    for promise in (Session, AsyncSession, scoped_session, async_scoped_session):
        plain = DERIVED[promise.__name__]
        for name in dir(plain):
            if not name.startswith("_") or (name in CALLED and has(plain, name)):
                yield pytest.param(plain, name, id=f"{plain.__name__}.{name}")


def has(cls: type[Any], name: str) -> bool:
    # A class is itself called, by way of its metaclass.
    return any(name in vars(parent) for parent in cls.__mro__)


@pytest.mark.parametrize(("plain", "name"), list(sqlalchemys()))
def test_sqlalchemys(plain: Any, name: str) -> None:
    """What SQLAlchemy's class has, ours has, and it takes the same at least."""
    ours = getattr(tenure, plain.__name__)

    assert hasattr(ours, name)
    if not callable(getattr(plain, name)) or isinstance(getattr(plain, name), type):
        return
    wanted, found = parameters(plain, name), parameters(ours, name)
    assert [] == complaints(wanted, found)
    assert awaited(getattr(plain, name)) == awaited(getattr(ours, name))


def test_default_scope() -> None:
    """The session of an async registry belongs to a task."""
    given = signature(tenure.async_scoped_session).parameters["scopefunc"].default

    assert asyncio.current_task is given
