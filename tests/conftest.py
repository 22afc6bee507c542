pytest_plugins = [
    "tests.fixtures.databases",
    "tests.fixtures.backend",
    "tests.fixtures.pools",
    "tests.fixtures.workers",
]
