# make demo | make test | make check   from a bare clone with python3, make and g++
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out
DATA   ?=
READY  := $(VENV)/.ready
SECURE := $(VENV)/.secure

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-long test-deploy image-test chaos check check-security licences docs format constraints \
        clean bench-model bench-shards

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(READY) ## make .venv and install everything at the pinned versions

# torch comes first and by its exact pin, so that nothing else pulls another build of it
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,jpeg,s3,server]'
	touch $@

demo: install    ## archive to report; DATA=folder in MSD or nnU-Net layout, OUT=folder, SET="key=value ..."
	$(BIN)/maetrain demo $(if $(DATA),--data "$(DATA)") --out "$(OUT)" $(SET)

test: install    ## all tests, on two cores; ARGS="-k name" etc.
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-faults: install ## kill ranks, hosts, head and driver, fill disks, cut networks; root, 40 min on 2 cores
	$(BIN)/python -m pytest -m faults --timeout 900

test-long: install ## kills of a sweep, a short rain of kills, 64 processes at one tracking store, the guide; root, 20 min
	$(BIN)/python -m pytest -m long

test-deploy: install ## the image, jobs on a real head, MLflow on PostgreSQL and S3 in a browser, Prometheus; root, 45 min
	$(BIN)/python -m pytest -m deploy --timeout 3600 -s

image-test: install ## build the CPU image and run it, a small demo too; root, buildah; BASE=image (else Debian by mmdebstrap)
	BASE="$(BASE)" $(BIN)/python -m pytest -m deploy --timeout 3600 -s tests/deploy/test_images.py

chaos: install   ## 200 kills of a small run on two hosts; root, two hours on 2 quiet cores; OUT=folder, the same one goes on
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu $(BIN)/python -m tests.fault.chaos --folder "$(OUT)" $(if $(WRITE),--write "$(WRITE)") $(ARGS)

bench-model: install ## step times beside MONAI's networks, CPU, 7 min; WRITE=file appends the result
	$(BIN)/python -m benchmarks.model --crop 64 $(if $(WRITE),--write "$(WRITE)")
	$(BIN)/python -m benchmarks.model --crop 96 --rounds 3 --only dense visible segmentation swinunetr $(if $(WRITE),--write "$(WRITE)")
	$(BIN)/python -m benchmarks.model --crop 128 --only dense visible $(if $(WRITE),--write "$(WRITE)")

# in an environment of its own: the peers' pins would not fit beside ours
bench-shards:    ## shards beside blosc2, tensorstore, Mosaic, LitData, MONAI, nnU-Net; CPU, 40 min; WRITE=file ARGS="--only reader"
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-shards.txt
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'moto[s3,server]'
	OMP_NUM_THREADS=1 $(VENV)-bench/bin/python -m benchmarks.shards $(if $(WRITE),--write "$(WRITE)") $(ARGS)

check: install   ## format, lint, types, import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint deploy/docker/Dockerfile

# tests and benchmarks are run by hand on files of their own: bandit leaves them out. Ends with an error where nobody answers about
# advisories, too: that is no all-clear. OFFLINE=1 goes on, loudly
check-security: $(SECURE) ## known holes in dependencies, bandit, secrets, licences; OFFLINE=1 where nobody can be asked
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive cluster data_shards docs maetrain
	$(BIN)/python -m tests.security.secrets
	$(BIN)/python -m pytest -q tests/security
	$(BIN)/python -m tests.security.advisories $(if $(OFFLINE),--offline)

# not part of install: nobody else needs these tools
$(SECURE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[security]'
	touch $@

licences: $(SECURE) ## write docs/licences.md anew from what is installed
	$(BIN)/python -m tests.security.licences

docs: install    ## build the documentation into site/; a warning is an error, nothing is fetched
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -b html -d site/.doctrees docs site/html
	@echo "site/html/index.html"

format: install  ## put the code into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(SECURE) ## write constraints.txt anew from what is installed
	( head -1 constraints.txt; $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//' ) > constraints.new
	mv constraints.new constraints.txt

clean:           ## remove the environment and caches, not the results
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
