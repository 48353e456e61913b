# Every target installs what it needs. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= demo
DATA ?=
CORES ?= $(shell nproc 2>/dev/null || echo 2)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# A lock that ends with the process that holds it; Snakemake's own outlives a killed run.
LOCK := $(if $(shell command -v flock),flock --nonblock --conflict-exit-code 75 .snakemake.lock)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help reproduce controls gain autoencoders contrast images images-full comparison comparison-as-published patients everything test test-all test-unit lint lab clean

help: ## list the targets, and how long each took here
	@awk -F '\t' '$$4 ~ /^(done|stopped)$$/ { so_far[$$1, $$2] += $$3; if ($$4 == "done") { \
			if (!(($$1, $$2) in took)) profiles[$$1] = profiles[$$1] " " $$2; \
			if (so_far[$$1, $$2] > took[$$1, $$2]) took[$$1, $$2] = so_far[$$1, $$2]; so_far[$$1, $$2] = 0 } } \
		/^[a-z-]+:.*## / { split($$0, of, /:.*## /); printf "  make %-23s %s", of[1], of[2]; n = split(profiles[of[1]], own, " "); \
			for (i = 1; i <= n; i++) printf " [%s took up to %.0f min]", own[i], took[of[1], own[i]] / 60; print "" }' \
		$(wildcard runs/times.tsv) $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=demo|smoke|haxby|haxby-slice or a YAML file (now: $(PROFILE)), DATA=folder of a BIDS profile, CORES=$(CORES)"

reproduce: ## the main job: data, pre-training, sweep, statistics, book (PROFILE=demo; smoke is the quick look)
controls: ## beyond the paper: baselines, initialisation, permuted labels, targets, seeds, steps, learning rates (PROFILE=autoencoder: planted faults)
gain: ## transfer gain against the number of pre-training subjects and the contrast
autoencoders: ## structural images: autoencoders, and transfer between cohorts (PROFILE=autoencoder)
autoencoders: PROFILE = autoencoder
contrast: ## temporal contrast: pre-training without labels, and its shortcuts (PROFILE=contrast)
contrast: PROFILE = contrast
images: ## networks for photographs on structural images, and phenotypes (PROFILE=images)
images-full: ## the same with trainings that take hours: fine-tuned controls, 3D, one phenotype at a time
images images-full: PROFILE = images
comparison: ## four ways to pre-train on equal terms (PROFILE=comparison)
comparison-as-published: ## the same with each paper's own architecture beside it
comparison comparison-as-published: PROFILE = comparison
patients: ## a study of twelve patients and twelve controls, from somebody's decoder to a report (PROFILE=patients)
patients: PROFILE = patients
reproduce controls gain autoencoders contrast images images-full comparison comparison-as-published patients: $(VENV)/ready
	@$(LOCK) snakemake --nolock --rerun-incomplete --cores $(CORES) --quiet rules host \
		--config target=$@ profile=$(PROFILE) controls=$(if $(filter controls,$@),yes,no) gain=$(if $(filter gain,$@),yes,no) transfers=$(if $(filter autoencoders,$@),yes,no) contrast=$(if $(filter contrast,$@),yes,no) comparison=$(if $(filter comparison%,$@),yes,no) published=$(if $(filter %as-published,$@),yes,no) images=$(if $(filter images%,$@),yes,no) full=$(if $(filter images-full,$@),yes,no) $(if $(DATA),data="$(DATA)") \
		|| { status=$$?; [ $$status = 75 ] && echo "make: another run is going on in this folder" >&2 \
		|| echo "make: stopped; the same command continues where it stopped" >&2; exit $$status; }
	@echo "The book is at $(CURDIR)/runs/$(notdir $(basename $(PROFILE)))/book/_build/html/index.html"

everything: ## all of the above but images-full, one after the other, and the whole book
	@for job in reproduce controls gain autoencoders "controls PROFILE=autoencoder" contrast "controls PROFILE=contrast" images \
		"controls PROFILE=images" patients comparison "controls PROFILE=comparison" comparison-as-published reproduce; do $(MAKE) --no-print-directory $$job || exit; done

test: lint ## lint, unit tests, integration tests on profile smoke
	pytest --numprocesses $(CORES) --maxprocesses 4 -m "not long"

test-all: lint ## all tests, those that take minutes, too
	pytest --numprocesses $(CORES) --maxprocesses 4

test-unit: $(VENV)/ready ## unit tests only
	pytest --numprocesses $(CORES) --maxprocesses 4 --ignore tests/integration

lint: $(VENV)/ready ## ruff, mypy, import contract, notebooks without outputs
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	nbstripout --verify notebooks/*.ipynb

lab: $(VENV)/ready-lab ## explore in JupyterLab
	jupyter lab notebooks

clean: ## remove all results (runs/); your own data stay
	rm -rf runs .snakemake .snakemake.lock

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[book,hpc,dev]'
	touch $@

$(VENV)/ready-lab: $(VENV)/ready
	$(BIN)/pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[lab]'
	touch $@
