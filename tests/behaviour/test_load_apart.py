"""Loads whose parts are each written and committed by the process that loads it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import create_engine, event, func, insert, inspect, select, text
from sqlalchemy.exc import ProgrammingError

from tenure import (
    Database,
    DatabaseError,
    LoadError,
    LoadReport,
    RejectedRowsError,
    Session,
)
from tests.fixtures.models import Author, Base, Book
from tests.fixtures.shared import (
    AuthorIn,
    BookIn,
    DeadlyIn,
    NodeIn,
    StampingSession,
)


@pytest.fixture
def db(server_url: str) -> Iterator[Database]:
    with Database(server_url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.add_all([Author(code="a"), Author(code="b")])
        yield db


@pytest.fixture
def own(flags: Path) -> Iterator[Executor]:
    """Give processes that a test may end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        yield pool


def load(db: Database, source: Any, into: Any = AuthorIn, **options: Any) -> LoadReport:
    options = {"commit": "part", "parts": 4} | options
    with db.session_manager() as session, session.bulk() as bulk:
        return bulk.load(source, into, **options)


def codes(db: Database) -> list[str]:
    with db.session_manager(new=True) as session:
        found = session.scalars(select(Author.code).order_by(Author.code)).all()
    return [code for code in found if code not in ("a", "b")]


def parts_left(db: Database) -> int:
    with db.session_manager() as session:
        count = text("SELECT count(*) FROM tenure_parts")
        return session.execute(count).scalar_one()


def authors(path: Path, codes: Any) -> Path:
    path.write_text("code\n" + "".join(f"{code}\n" for code in codes))
    return path


def names(count: int) -> list[str]:
    return [f"c{n:03}" for n in range(count)]


class TestDone:
    def test_as_one_process(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """Counts, missing keys, lines and the rejects file."""
        path = tmp_path / "books.csv"
        rows = [
            f"{n},title {n},{'x' if n % 7 == 3 else n},{'abz'[n % 3]},"
            f"{'yy' if n % 5 == 1 else ''}\n"
            for n in range(60)
        ]
        path.write_text("".join(["isbn,title,pages,author,editor\n", *rows]))
        reports, texts = [], []
        for number, options in enumerate(
            ({"commit": "batch", "parts": None}, {"executor": processes})
        ):
            rejects = tmp_path / f"{number}.jsonl"
            report = load(
                db, path, BookIn, max_errors=None, rejects=str(rejects), **options
            )
            reports.append(report)
            texts.append(sorted(rejects.read_text().splitlines()))
            with db.session_manager(auto_commit=True) as session:
                for book in session.scalars(select(Book)):
                    session.delete(book)

        mine, theirs = reports
        for name in ("rows", "created", "rejected", "kept", "reasons", "resume"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.references == theirs.references
        assert texts[0] == texts[1]
        assert [True] * 4 == [part.done for part in theirs.parts]
        assert mine.rows == sum(part.rows for part in theirs.parts)
        assert theirs.committed
        assert theirs.bytes_read == theirs.bytes_total == path.stat().st_size
        assert 0 == parts_left(db)

    def test_update(self, db: Database, processes: Executor, tmp_path: Path) -> None:
        path = authors(tmp_path / "authors.csv", names(40))
        load(db, path, executor=processes)
        report = load(db, path, executor=processes, on_conflict="skip")

        assert (0, 40) == (report.created, report.skipped)

    def test_several_files(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        paths = [
            authors(tmp_path / f"{n}.csv", [f"c{n}{m}" for m in range(10)])
            for n in range(3)
        ]
        report = load(
            db, paths, executor=processes, parts=None, parts_table="other_parts"
        )

        assert [str(path) for path in paths] == [part.file for part in report.parts]
        assert 30 == len(codes(db))
        with db.session_manager() as session:
            tables = inspect(session.connection()).get_table_names()
        assert "other_parts" in tables
        assert "tenure_parts" not in tables

    def test_progress(self, db: Database, processes: Executor, tmp_path: Path) -> None:
        """It is called after each part, with what is committed."""
        path = authors(tmp_path / "authors.csv", names(40))
        seen: list[tuple[int, int]] = []

        def progress(report: LoadReport) -> None:
            seen.append((report.kept, len(codes(db))))

        load(db, path, executor=processes, progress=progress)

        assert 40 == seen[-1][0]
        assert all(kept <= there for kept, there in seen)

    @pytest.mark.parametrize("on_conflict", ["update", "skip"])
    def test_order(
        self, db: Database, processes: Executor, tmp_path: Path, on_conflict: Any
    ) -> None:
        """Of rows with one key the last one stays, or the first, as in one process."""
        path = tmp_path / "authors.csv"
        lines = [f"{code},{age}\n" for age in ("old", "new") for code in names(200)]
        path.write_text("".join(["code,name\n", *lines]))

        load(db, path, executor=processes, on_conflict=on_conflict)

        with db.session_manager() as session:
            found = set(session.scalars(select(Author.name).where(Author.name != "")))
        assert {"new" if on_conflict == "update" else "old"} == found

    def test_many_rejects(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """More than a server takes at once."""
        path = authors(tmp_path / "authors.csv", ["x" * 2_000] * 3_000)
        rejects = tmp_path / "rejects.jsonl"

        report = load(
            db,
            path,
            executor=processes,
            parts=1,
            max_errors=None,
            rejects=str(rejects),
            parts_table="many_parts",
        )

        assert 3_000 == report.rejected == len(rejects.read_text().splitlines())

    def test_refused_rejects(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """A load that does not begin leaves the file of another one as it is."""
        rejects = tmp_path / "rejects.jsonl"
        rejects.write_text("{}\n")
        path = authors(tmp_path / "authors.csv", names(2))
        with pytest.raises(LoadError, match="knows no load"):
            load(db, path, executor=processes, rejects=str(rejects), resume="x")
        assert "{}\n" == rejects.read_text()


class TestCutShort:
    def test_rejected(self, db: Database, processes: Executor, tmp_path: Path) -> None:
        """Too many over all parts; those that are done stay, and are not done again."""
        wrong = {17: "x" * 40, 31: "y" * 40}
        path = authors(
            tmp_path / "authors.csv", [wrong.get(n, c) for n, c in enumerate(names(40))]
        )
        rejects = tmp_path / "rejects.jsonl"

        with pytest.raises(RejectedRowsError) as raised:
            load(db, path, executor=processes, max_errors=0, rejects=str(rejects))
        report: Any = raised.value.report
        there = len(codes(db))
        assert there == report.kept == report.created
        assert there == sum(part.rows for part in report.parts if part.done)
        assert not all(part.done for part in report.parts)
        assert 1 <= report.rejected == len(rejects.read_text().splitlines())
        assert report.load_id in "".join(raised.value.__notes__)
        again = load(
            db,
            path,
            executor=processes,
            max_errors=2,
            rejects=str(rejects),
            resume=report,
        )

        assert (38, 2) == (again.kept, again.rejected)
        assert 38 == len(codes(db))
        assert 2 == len(rejects.read_text().splitlines())
        assert 0 == parts_left(db)

    def test_interrupted(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """What is not committed then never will be."""
        path = authors(tmp_path / "authors.csv", names(200))

        def progress(report: LoadReport) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as raised:
            load(db, path, executor=processes, parts=20, progress=progress)
        report: Any = raised.value.report  # type: ignore[attr-defined]  # load() sets it
        there = codes(db)
        again = load(db, path, executor=processes, parts=20, resume=report.load_id)

        assert report.kept == len(there) < 200
        assert 200 == again.kept == len(codes(db))
        assert 0 == parts_left(db)

    def test_another_source(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """Parts are known by their number, so the source has to be the same."""
        path = authors(tmp_path / "authors.csv", [*names(40), "x" * 40])
        with pytest.raises(RejectedRowsError) as raised:
            load(db, path, executor=processes)
        authors(path, names(41))

        with pytest.raises(LoadError, match="cannot go on: bytes was"):
            load(db, path, executor=processes, resume=raised.value.report)
        # As long as before, but its lines end elsewhere.
        authors(path, [f"{'x' * (9 if n % 2 else 1)}{n}" for n in range(41)])
        size = path.stat().st_size
        authors(path, [*names(40), "x" * (size - 5 - 40 * 5 - 1)])
        with pytest.raises(RejectedRowsError) as raised:
            load(db, path, executor=processes, on_conflict="skip")
        authors(path, [f"{'x' * (9 if n % 2 else 1)}{n}" for n in range(41)])
        assert size == path.stat().st_size
        with pytest.raises(LoadError, match="so the source has changed"):
            load(
                db,
                path,
                executor=processes,
                on_conflict="skip",
                resume=raised.value.report,
            )
        with pytest.raises(LoadError, match="knows no load 'nothing'"):
            load(db, path, executor=processes, resume="nothing")

    def test_database_fails(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """An error of a worker is that of the database; it says how to go on."""
        path = authors(tmp_path / "authors.csv", names(40))
        with db.session_manager(auto_commit=True) as session:
            session.execute(text("ALTER TABLE author RENAME TO gone"))

        with pytest.raises(DatabaseError) as raised:
            load(db, path, executor=processes)

        assert isinstance(raised.value, ProgrammingError)
        assert "resume=" in "".join(raised.value.__notes__)
        with db.session_manager(auto_commit=True) as session:
            session.execute(text("ALTER TABLE gone RENAME TO author"))
        assert [] == codes(db)


class TestDeath:
    def test_once(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        """The part of a worker that dies is loaded by another one."""
        path = authors(tmp_path / "authors.csv", [*names(30), "die1", *names(60)[30:]])
        (flags / "die1").touch()

        report = load(db, path, DeadlyIn, executor=own)

        assert not (flags / "die1").exists()
        assert 61 == report.kept == len(codes(db))

    def test_always(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        """It is named, and the others are not blamed for it."""
        path = authors(tmp_path / "authors.csv", [*names(30), "die2", *names(60)[30:]])
        (flags / "die2").touch()
        try:
            with pytest.raises(
                LoadError, match=r"part \d .*given to a worker once more"
            ):
                load(db, path, DeadlyIn, executor=own)
        finally:
            (flags / "die2").unlink()

        assert "die2" not in codes(db)

    def test_resumed(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        path = authors(tmp_path / "authors.csv", [*names(50), "die3"])
        (flags / "die3").touch()
        try:
            with pytest.raises(LoadError, match="worker once more") as raised:
                load(db, path, DeadlyIn, executor=own)
        finally:
            (flags / "die3").unlink()
        report: Any = raised.value.report  # type: ignore[attr-defined]  # load() sets it
        assert 3 == sum(part.done for part in report.parts)

        with ThreadPoolExecutor(2) as pool:
            again = load(db, path, DeadlyIn, executor=pool, resume=report)
        assert 51 == again.kept == len(codes(db))

    def test_after_the_commit(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        """A part whose answer was lost is not loaded twice."""
        path = authors(tmp_path / "authors.csv", names(60))
        (flags / "committed").touch()

        report = load(db, path, executor=own)

        assert not (flags / "committed").exists()
        assert 60 == report.created == len(codes(db))

    def test_validating(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        """The same where workers only validate."""
        path = authors(tmp_path / "authors.csv", [*names(30), "die1", *names(60)[30:]])
        (flags / "die1").touch()
        report = load(db, path, DeadlyIn, executor=own, commit="once")

        assert 61 == report.kept == len(codes(db))
        with pytest.raises(LoadError, match="the executor takes no work: A child"):
            load(db, path, DeadlyIn, executor=own, commit="once")

    def test_validating_always(
        self, db: Database, own: Executor, flags: Path, tmp_path: Path
    ) -> None:
        path = authors(tmp_path / "authors.csv", [*names(60), "die2"])
        (flags / "die2").touch()
        try:
            with pytest.raises(
                LoadError, match=r"part 3 .*given to a worker once more"
            ):
                load(db, path, DeadlyIn, executor=own, commit="once")
        finally:
            (flags / "die2").unlink()
        assert [] == codes(db)


@pytest.mark.postgresql
@pytest.mark.parametrize("times", [2, 1_000])
def test_undone_by_chance(
    postgresql_url: str, processes: Executor, tmp_path: Path, times: int
) -> None:
    """A part that a deadlock has undone is loaded again, but not for ever."""
    path = authors(tmp_path / "authors.csv", names(20))
    with Database(postgresql_url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            # What a sequence has given is not undone.
            for statement in (
                "CREATE SEQUENCE tries",
                (
                    "CREATE FUNCTION chance() RETURNS trigger LANGUAGE plpgsql AS $$ "
                    f"BEGIN IF nextval('tries') <= {times} THEN RAISE EXCEPTION "
                    "'by chance' USING ERRCODE = '40P01'; END IF; RETURN NULL; END $$"
                ),
                "CREATE TRIGGER chance AFTER INSERT ON author EXECUTE FUNCTION chance()",
            ):
                session.execute(text(statement))

        if times == 2:
            assert 20 == load(db, path, executor=processes, parts=1).created
        else:
            with pytest.raises(DatabaseError, match="by chance"):
                load(db, path, executor=processes, parts=1)
        with db.session_manager() as session:
            tries = session.scalar(text("SELECT last_value FROM tries"))
        assert tries == (3 if times == 2 else 5)


def test_deadlock(db: Database, processes: Executor, tmp_path: Path) -> None:
    """The database undoes all of a part, its savepoints as well."""
    path = authors(tmp_path / "authors.csv", names(6))
    engine = db.manager.engines["default"]
    is_mariadb = engine.dialect.name == "mysql"
    waiting = (
        "SELECT CAST(variable_value AS INT) FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
        if is_mariadb
        else "SELECT count(*) FROM pg_locks WHERE NOT granted"
    )
    own = {"isolation_level": "AUTOCOMMIT"}
    with (
        ThreadPoolExecutor(1) as thread,
        engine.connect() as other,
        engine.connect().execution_options(**own) as eye,
    ):
        # The one with fewer rows is undone.
        other.execute(insert(Author), [{"code": f"d{n:03}"} for n in range(500)])
        other.execute(insert(Author).values(code="c005"))
        done = thread.submit(load, db, path, executor=processes, parts=1)
        while not eye.execute(text(waiting)).scalar():
            assert not done.done()
        other.execute(insert(Author).values(code="c000"))
        other.rollback()
        report = done.result()

    assert (6, 0) == (report.created, report.rejected)
    assert names(6) == codes(db)


class TestRefused:
    def test_sqlite(self, processes: Executor, tmp_path: Path) -> None:
        path = authors(tmp_path / "authors.csv", names(2))
        with Database("sqlite://") as db:
            db.create_all(Base.metadata)
            with pytest.raises(LoadError, match="SQLite has one writer"):
                load(db, path, executor=processes)

    def test_what_has_no_parts(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        path = authors(tmp_path / "authors.csv", names(2))
        nodes = tmp_path / "nodes.csv"
        nodes.write_text("code,parent\nn1,\n")
        for source, into, options, message in (
            (path, AuthorIn, {"dry_run": True}, "a dry run writes no parts"),
            (path, AuthorIn, {"start": 2}, "start is no way to go on with parts"),
            (nodes, NodeIn, {}, r"name rows of the same source \(Node\)"),
        ):
            with pytest.raises(LoadError, match=message):
                load(db, source, into, executor=processes, **options)
        with (
            db.session_manager() as session,
            session.bulk() as bulk,
            pytest.raises(LoadError, match="the session is in a transaction"),
        ):
            session.execute(select(Author))
            bulk.load(path, AuthorIn, executor=processes, commit="part")

    def test_transactions_of_others(
        self, db: Database, processes: Executor, tmp_path: Path
    ) -> None:
        """A part and its note are one transaction, which is the worker's."""
        path = authors(tmp_path / "authors.csv", names(20))
        engine = db.manager.engines["default"]
        with engine.connect() as connection, Session(connection) as session:
            with (
                session.bulk() as bulk,
                pytest.raises(LoadError, match="bound to a connection"),
            ):
                bulk.load(path, AuthorIn, executor=processes, commit="part")
        by_itself = engine.execution_options(isolation_level="AUTOCOMMIT")
        with Session(by_itself) as session, session.bulk() as bulk:
            with pytest.raises(LoadError, match="AUTOCOMMIT"):
                bulk.load(path, AuthorIn, executor=processes, commit="part")
        assert [] == codes(db)

    @pytest.mark.postgresql
    def test_schemas(
        self, postgresql_url: str, processes: Executor, tmp_path: Path
    ) -> None:
        """Workers write where the engine of the session would."""
        path = authors(tmp_path / "authors.csv", names(20))
        with Database(postgresql_url) as db:
            db.create_all(Base.metadata)
            engine = db.manager.engines["default"]
            other = engine.execution_options(schema_translate_map={None: "other"})
            with engine.begin() as connection:
                connection.execute(text("CREATE SCHEMA other"))
            Base.metadata.create_all(other)
            with Session(other) as session, session.bulk() as bulk:
                bulk.load(path, AuthorIn, executor=processes, commit="part", parts=2)
            with engine.connect() as connection:
                count = "SELECT count(*) FROM {}.author"
                assert 20 == connection.scalar(text(count.format("other")))
                assert 0 == connection.scalar(text(count.format("public")))

    def test_engines(self, db: Database, processes: Executor, tmp_path: Path) -> None:
        """Workers make an engine of their own, from what a Database was told."""
        path = authors(tmp_path / "authors.csv", names(2))
        made = db.manager.engines["default"]
        engine = create_engine(made.url)
        with Session(engine) as session, session.bulk() as bulk:
            with pytest.raises(LoadError, match="the engine was made by the program"):
                bulk.load(path, AuthorIn, executor=processes, commit="part")
        engine.dispose()

    @pytest.mark.parametrize(
        "name", ["connect", "do_connect", "begin", "before_cursor_execute"]
    )
    def test_listeners_of_engines(
        self, db: Database, processes: Executor, tmp_path: Path, name: str
    ) -> None:
        """What one does to a connection a worker's would lack."""
        path = authors(tmp_path / "authors.csv", names(2))
        # One of statements that only looks on is no matter.
        engine = db.manager.engines["default"]
        if name == "before_cursor_execute":
            event.listen(engine, name, lambda *given: given[2:4], retval=True)
        else:
            event.listen(engine, name, lambda *_: None)
        with pytest.raises(LoadError, match=f"the engine has a listener for {name}"):
            load(db, path, executor=processes)
        assert [] == codes(db)

    def test_listeners(self, db: Database, processes: Executor, tmp_path: Path) -> None:
        """Those of a class have a say in workers as well; others are refused."""
        path = authors(tmp_path / "authors.csv", names(6))
        engine = db.manager.engines["default"]
        with StampingSession(engine, info={"stamp": "told"}) as session:
            with session.bulk() as bulk:
                bulk.load(path, AuthorIn, executor=processes, commit="part", parts=2)
        with db.session_manager() as session:
            stamped = select(func.count()).where(Author.email == "told")
            assert 6 == session.scalar(stamped)
        with Session(engine) as session, session.bulk() as bulk:
            event.listen(session, "before_flush", lambda *_: None)
            with pytest.raises(LoadError, match="has a listener for before_flush"):
                bulk.load(path, AuthorIn, executor=processes, commit="part")

    def test_databases(
        self, server_url: str, processes: Executor, tmp_path: Path
    ) -> None:
        """What rows name has to be where they are."""

        class Elsewhere:
            def db_for_read(self, resource: Any, **_: Any) -> str | None:
                return "other" if resource is Author else None

            db_for_write = db_for_read

        path = tmp_path / "books.csv"
        path.write_text("isbn,title,author\n1,one,a\n")
        two = {"default": server_url, "other": server_url}
        with (
            Database(two, routers=[Elsewhere()]) as db,
            pytest.raises(LoadError, match="are in several databases"),
        ):
            load(db, path, BookIn, executor=processes)

    @pytest.mark.parametrize("resume", ["", b"x", 5, LoadReport()])
    def test_resume(
        self, db: Database, processes: Executor, tmp_path: Path, resume: Any
    ) -> None:
        path = authors(tmp_path / "authors.csv", names(2))
        with pytest.raises(LoadError, match="resume is the report, or the load_id"):
            load(db, path, executor=processes, resume=resume)


class OnLoop(Executor):
    """Does its work in an event loop, which has to run for that."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        asyncio.get_running_loop().call_soon(
            lambda: future.set_result(fn(*args, **kwargs))
        )
        # Otherwise a load that blocks the loop would wait for ever.
        stopped = RuntimeError("the event loop stands still")
        timer = Timer(10, lambda: future.done() or future.set_exception(stopped))
        future.add_done_callback(lambda _: timer.cancel())
        timer.start()
        return future


@pytest.mark.parametrize("commit", ["once", "part"])
def test_async(
    async_server_url: str, processes: Executor, tmp_path: Path, commit: Any
) -> None:
    """The event loop runs while workers are at it, and they use its driver."""
    path = authors(tmp_path / "authors.csv", names(100))
    executor = OnLoop() if commit == "once" else processes

    async def work() -> LoadReport:
        async with Database(async_server_url) as db:
            await db.acreate_all(Base.metadata)
            async with db.async_session_manager() as session, session.bulk() as bulk:
                report = await bulk.load(
                    path, AuthorIn, executor=executor, commit=commit, parts=3
                )
            async with db.async_session_manager() as session:
                count = select(func.count()).select_from(Author)
                assert 100 == await session.scalar(count)
        return report

    report = asyncio.run(work())

    assert 100 == report.kept
    assert (0 if commit == "once" else 3) == len(report.parts)
