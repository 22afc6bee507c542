"""What of SQLAlchemy's suite is run, and what may come out otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: Sessions and all they do, on a driver that blocks.
SESSIONS = (
    "test/orm/dml",
    "test/orm/test_backref_mutations.py",
    "test/orm/test_bind.py",
    "test/orm/test_cascade.py",
    "test/orm/test_core_compilation.py",
    "test/orm/test_cycles.py",
    "test/orm/test_defaults.py",
    "test/orm/test_deferred.py",
    "test/orm/test_deprecations.py",
    "test/orm/test_dynamic.py",
    "test/orm/test_events.py",
    "test/orm/test_expire.py",
    "test/orm/test_hasparent.py",
    "test/orm/test_lazy_relations.py",
    "test/orm/test_load_on_fks.py",
    "test/orm/test_loading.py",
    "test/orm/test_lockmode.py",
    "test/orm/test_manytomany.py",
    "test/orm/test_merge.py",
    "test/orm/test_naturalpks.py",
    "test/orm/test_onetoone.py",
    "test/orm/test_options.py",
    "test/orm/test_pickled.py",
    "test/orm/test_query.py",
    "test/orm/test_relationship_criteria.py",
    "test/orm/test_scoping.py",
    "test/orm/test_session.py",
    "test/orm/test_session_state_change.py",
    "test/orm/test_sync.py",
    "test/orm/test_transaction.py",
    "test/orm/test_unitofwork.py",
    "test/orm/test_unitofworkv2.py",
    "test/orm/test_utils.py",
    "test/orm/test_versioning.py",
    "test/ext/test_baked.py",
    "test/ext/test_horizontal_shard.py",
    "test/ext/test_mutable.py",
    "test/ext/test_serializer.py",
)

#: The same on a driver that waits; without one these tests are skipped.
ASYNC_SESSIONS = (
    "test/ext/asyncio/test_cancellation.py",
    "test/ext/asyncio/test_scoping.py",
    "test/ext/asyncio/test_session.py",
)

#: For each push.
QUICK_SESSIONS = (
    "test/orm/dml/test_bulk.py",
    "test/orm/test_bind.py",
    "test/orm/test_cascade.py",
    "test/orm/test_events.py",
    "test/orm/test_expire.py",
    "test/orm/test_merge.py",
    "test/orm/test_scoping.py",
    "test/orm/test_session.py",
    "test/orm/test_session_state_change.py",
    "test/orm/test_transaction.py",
    "test/orm/test_unitofworkv2.py",
    "test/ext/test_horizontal_shard.py",
)

#: Everything that maps classes.
ALL_SESSIONS = ("test/orm", "test/ext")


@dataclass(frozen=True)
class Difference:
    """
    A test that may fail with our classes, in one way.

    Args:
        test: The test's id, with ``*`` for what varies.
        says: An expression that finds what the failure says; another failure is a
            regression.
        reason: Why it cannot be avoided.
    """

    test: str
    says: str
    reason: str

    def covers(self, test: str, text: str) -> bool:
        """Say whether *test*, having failed with *text*, is the one."""
        return fnmatchcase(test, self.test) and bool(re.search(self.says, text))


#: None at present.
DIFFERENCES: tuple[Difference, ...] = ()
