# make test ARGS="--db sqlite -k scope"    make demo URL=sqlite:///flights.db

VENV := .venv
BIN := $(VENV)/bin
export PYTHON
# What follows --db in ARGS.
DATABASES = $(shell echo '$(ARGS)' | grep -oE -- '--db[= ][a-z]+' | sed 's/--db.//' | xargs)

.PHONY: demo test compat lint types bench journeys sync servers clean

demo: $(VENV)/.flights
	@$(BIN)/python -m examples.flights $(URL:%=--url %)

test: servers $(VENV)/.flights
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 \
		--dist loadgroup $(ARGS)

# SQLAlchemy's own tests, with our classes for its own: ARGS=--quick for a part.
compat: servers
	@$(BIN)/python -m tools.compat $(ARGS)

lint: $(VENV)/.ready
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/python tools/sync_tests.py --check

types: $(VENV)/.ready
	@$(BIN)/mypy

bench: servers $(VENV)/.flights
	@sh tools/setup.sh baseball
	@$(BIN)/python -m bench $(ARGS)

# How many modules a record, a value, a reference and a statement pass.
journeys: $(VENV)/.ready
	@$(BIN)/python -m tools.journeys $(ARGS)

# The sync half of tests/behaviour, from the async half.
sync: $(VENV)/.ready
	@$(BIN)/python tools/sync_tests.py

# Those that ARGS asks for with --db; all without.
servers: $(VENV)/.ready
	@sh tools/setup.sh servers $(DATABASES)

clean:
	@rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis \
		.mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml
	@sh tools/setup.sh venv
	@touch $@

$(VENV)/.flights: $(VENV)/.ready
	@sh tools/setup.sh flights
	@touch $@
