# Two commands: `make lab` and `make test`. Each sets up what it needs first.
PYTHON_HERE := .venv/bin/python
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup lab lab-down check test docs docs-site golden

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1  \2/p' Makefile | awk '{ t = $$2; $$1 = $$2 = ""; printf "  make %-9s %s\n", t, substr($$0, 3) }'

setup: ## programs from this machine's packages, Python packages into .venv
	@./setup.sh

lab: ## three machines on this host, and prefill-decode serving on them
	@began=$$(date +%s) && ./setup.sh && $(PYTHON_HERE) -m splitrail.make lab --began $$began

lab-down: setup ## remove the lab; its cache stays
	@$(PYTHON_HERE) -m splitrail lab down -i inventories/lab

check: setup ## lint, types and unit tests; needs no machine, no root
	@$(PYTHON_HERE) -m splitrail.make check

test: check ## all tests, on labs that it takes down again; SCENARIOS="preflight ..." for some of the roles' alone
	@$(PYTHON_HERE) -m splitrail.make test $(SCENARIOS)

docs: setup ## the tables in the roles' READMEs, from their argument specs
	@$(PYTHON_HERE) -m splitrail.roles_doc

docs-site: setup ## the documents as a site, build/site/index.html; every command, role and check among them
	@$(PYTHON_HERE) -m pip install --quiet --no-input --disable-pip-version-check -e 'python[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_HERE) -m mkdocs build --strict --quiet
	@echo 'read it: build/site/index.html, or $(PYTHON_HERE) -m http.server -d build/site'

golden: setup ## the reviewed files of `splitrail render`, made anew; then review `git diff`
	@$(PYTHON_HERE) -m splitrail render -i inventories/mi325x --out python/tests/golden/mi325x
