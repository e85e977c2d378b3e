# Commands for developers and CI. Every target installs what it needs, so `make demo` or `make test` can come first.
#
#   make demo      the whole system against a sandbox; needs no server and no key, only Python 3.11 or newer
#   make demo-adopt  a business that exists already: discovered, adopted and managed in a sandbox; in under two minutes
#   make test      the fast tests: every rule on SQLite, one of each module on Postgres; in under four minutes
#   make test-all  all tests, on SQLite, Postgres and Valkey (wheels, or the servers that your environment names)
#   make check     everything that CI runs: lint types layers docs test-all
#   make docs      the documentation site, in build/site; a broken link is an error
#   make install   .venv with the run-time packages; then .venv/bin/billing-sync
#   make crash-matrix       kills every operation at every point, starts it again and compares; two hours
#   make rate-limits        2,000 creates by four workers: how much of the providers' rate limits is used; two minutes
#   make chaos SEED=1       makes changes while servers and processes are stopped and started; five minutes
#   make held-open 1,200 silent and slow connections, waiting requests, forged tokens and large bodies at once; three minutes
#   make races     requests against the loss of their authority, 1,000 times for each kind; five minutes
#   make money SEED=1       tells stories of changes, faults and people for 10,000 steps; half an hour on a free machine
#   make adoption SEED=1    discovers, adopts and manages a business of 2,000 customers whose truth is known
#   make observed STATES=1000  compares what is planned in observe mode with what a reconcile then does; fifteen minutes
#   make generated SEED=1   ten thousand generated messages and requests to a whole system: none is lost, none ends it; ten minutes
#   make foreign   the whole story against stand-ins for Stripe that are not ours; three minutes (docs/how-to/prove-on-your-account.md)
#   make live      the same against your own test accounts: STRIPE_SECRET_KEY=sk_test_… LAGO_API_URL=… LAGO_API_KEY=…
#   make bench     benchmarks, each figure beside its baseline (make bench-quick: small sizes, some minutes)
#   make promtool  Prometheus's own checker of alerts, from Debian's package; without it the tests of the alerts are skipped
#   make pgbouncer a real PgBouncer, from Debian's package; without it the tests through a pooler are skipped
#   make lock      writes the lock files again, after a change of dependencies in pyproject.toml

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
# setuptools comes from the lock file, too, so no package is fetched without a hash.
PROJECT := --no-deps --no-build-isolation --editable .
COMPILE := pip compile pyproject.toml - --universal --python-version 3.11 --generate-hashes --no-config --quiet \
	--no-emit-index-url --no-emit-find-links --annotation-style line --custom-compile-command 'make lock'

.PHONY: install demo demo-adopt adoption test test-all check lint types layers docs promtool pgbouncer nginx crash-matrix held-open races rate-limits chaos money generated foreign live bench bench-quick lock observed
.NOTPARALLEL:
.DELETE_ON_ERROR:

install: $(VENV)/installed

demo: $(VENV)/installed
	@$(BIN)/billing-sync demo

demo-adopt: $(VENV)/installed
	@$(BIN)/billing-sync demo-adopt

check: lint types layers docs test-all  ## everything that CI runs, in the same order

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

layers: $(VENV)/installed-test
	$(BIN)/lint-imports

# The variable silences an announcement of the theme about the generator's next major version.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

# The markers are described in pyproject.toml; which Postgres tests are slow is decided in tests/conftest.py. Each of the
# two workers (pytest-xdist) has its own servers; one that has finished takes over tests of the other.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
test: $(VENV)/installed-test
	@echo 'The fast tests: under four minutes on two cores. Left out: starting processes, long searches, most of Postgres (make test-all).'
	@$(PYTEST) -q -m 'not slow and not processes'

test-all: $(VENV)/installed-test
	$(PYTEST)

crash-matrix: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.crash.matrix

# Programs of others, each in an environment of its own: one is GPL, one needs a newer Python, one is for Node.js.
FOREIGN := .venv-foreign
STAND_INS := tests/foreign/stand_ins
FOREIGN_PIP := -m pip --disable-pip-version-check --quiet install --require-hashes
# The newest Python from 3.13 on, also one of pyenv that is not switched on.
NEWER_PYTHON := for each in python3.14 python3.13 $$(ls -dr "$$(pyenv root 2>/dev/null)"/versions/3.1[3-9]*/bin/python3 2>/dev/null); do \
	"$$each" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))' 2>/dev/null && { echo "$$each"; break; }; done

SEED ?= 1
rate-limits: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m benchmarks.rate_limits

bench: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m benchmarks.run

bench-quick: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m benchmarks.run --quick

# Through nginx, too, where it can be had.
held-open: $(VENV)/installed-test
	@$(BIN)/nginx -v 2>/dev/null || timeout 300 $(MAKE) --no-print-directory nginx >/dev/null 2>&1 || true
	@$(BIN)/python -W ignore -m benchmarks.held_open

races: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m benchmarks.races

chaos: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.chaos.run --seed $(SEED)

STEPS ?= 10000
money: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.money.run --seed $(SEED) --steps $(STEPS)

CUSTOMERS ?= 2000
adoption: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.adoption.run --seed $(SEED) --customers $(CUSTOMERS)
STATES ?= 1000
observed: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.observing.run --seed $(SEED) --states $(STATES)

MESSAGES ?= 10000
REQUESTS ?= 10000
generated: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.generated.run --seed $(SEED) --messages $(MESSAGES) --requests $(REQUESTS)

foreign: $(VENV)/installed-test $(FOREIGN)/installed
	@$(BIN)/python -W ignore -m tests.foreign.run

live: $(VENV)/installed-test
	@$(BIN)/python -W ignore -m tests.foreign.live

# The programs of Debian's packages are unpacked, not installed, so that no server starts.
nginx: $(BIN)/python
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && ( cd "$$folder" && \
	{ apt-get download -qq nginx || { apt-get update -qq && apt-get download -qq nginx; }; } && \
	dpkg-deb -x nginx_*.deb . ) && cp "$$folder/usr/sbin/nginx" $(BIN)/nginx && $(BIN)/nginx -v

promtool: $(BIN)/python
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && ( cd "$$folder" && \
	{ apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && \
	dpkg-deb -x prometheus_*.deb . ) && cp "$$folder/usr/bin/promtool" $(BIN)/promtool && $(BIN)/promtool --version

# Unpacked as well, with the two libraries that a machine without it may lack; their names differ between releases.
pgbouncer: $(BIN)/python
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && ( cd "$$folder" && \
	get() { apt-get download -qq pgbouncer $$(apt-cache depends pgbouncer | sed -nE 's/^ +Depends: (lib(event|c-?ares)[^ ]*)$$/\1/p'); } && \
	{ get || { apt-get update -qq && get; }; } && \
	for package in *.deb; do dpkg-deb -x "$$package" .; done ) && mkdir -p $(VENV)/lib/pgbouncer && \
	cp -a "$$folder"/usr/lib/*/*.so* $(VENV)/lib/pgbouncer/ && cp "$$folder/usr/sbin/pgbouncer" $(BIN)/pgbouncer && \
	LD_LIBRARY_PATH=$(VENV)/lib/pgbouncer $(BIN)/pgbouncer --version | head -n 1

# Keeps the versions that still fit. To update everything, remove the lock files first.
lock:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" --disable-pip-version-check --quiet install 'uv==0.13.*' && \
	build=$$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])') && \
	echo "$$build" | "$$tools/bin/uv" $(COMPILE) --output-file requirements.lock && \
	echo "$$build" | "$$tools/bin/uv" $(COMPILE) --extra test --constraint requirements.lock --output-file requirements-test.lock && \
	echo "$$build" | "$$tools/bin/uv" $(COMPILE) --extra docs --constraint requirements-test.lock --output-file requirements-docs.lock
	@if grep -n '://' requirements.lock requirements-test.lock requirements-docs.lock; then echo 'These addresses must not be in a lock file.'; exit 1; fi

# Stamp files: a second run installs nothing; a changed lock file or pyproject.toml installs again.
$(VENV)/installed: requirements.lock pyproject.toml | $(BIN)/python
	@echo 'Installing what requirements.lock names into $(VENV) …'
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) $(PROJECT)
	@touch $@

$(VENV)/installed-test: requirements-test.lock $(VENV)/installed
	@echo 'Installing what requirements-test.lock names into $(VENV) …'
	@$(PIP) --require-hashes -r requirements-test.lock
	@touch $@

$(VENV)/installed-docs: requirements-docs.lock $(VENV)/installed
	@echo 'Installing what requirements-docs.lock names into $(VENV) …'
	@$(PIP) --require-hashes -r requirements-docs.lock
	@touch $@

# What cannot be installed here is left out with one sentence; `make foreign` fails if fewer than two are left.
$(FOREIGN)/installed: $(STAND_INS)/localstripe.lock $(STAND_INS)/seahaven.lock $(STAND_INS)/package-lock.json
	@echo 'Installing the stand-ins of others into $(FOREIGN) …'
	@rm -rf $(FOREIGN) && mkdir $(FOREIGN) && $(PYTHON) -m venv $(FOREIGN)/localstripe
	@$(FOREIGN)/localstripe/bin/python $(FOREIGN_PIP) -r $(STAND_INS)/localstripe.lock
	@newer=$$($(NEWER_PYTHON)); if [ -z "$$newer" ]; then \
		echo 'There is no Python 3.13 or newer here: seahaven-stripe-world is left out.'; else \
		"$$newer" -m venv $(FOREIGN)/seahaven && $(FOREIGN)/seahaven/bin/python $(FOREIGN_PIP) --no-deps \
			--ignore-requires-python -r $(STAND_INS)/seahaven.lock; fi
	@if ! command -v npm >/dev/null; then \
		echo 'There is no npm here: stripe-stateful-mock is left out.'; else \
		cp $(STAND_INS)/package.json $(STAND_INS)/package-lock.json $(FOREIGN) && \
		npm ci --prefix $(FOREIGN) --ignore-scripts --no-audit --no-fund --silent; fi
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo 'There is no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d' ' -f2). Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo '$(PYTHON) comes without venv: install it (Debian, Ubuntu: apt-get install python3-venv), then repeat.'; exit 1; }
	@$(PYTHON) -m venv $(VENV)
