# Everything runs in .venv, which is created on first use. You need Python 3.11 or newer, make and git.
# Another Python: make run PYTHON=python3.12     Another lesson: make run LESSON=04_stable_video_diffusion

PYTHON ?= python3
LESSON ?= 01_ltx_video
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help run lab pages test test-browser lint clean-notebooks

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

run: $(READY) ## run a lesson without a browser (LESSON=01_ltx_video, ARGS="-p clip wood_chipper")
	@$(BIN)/python -m helpers.run_lesson $(LESSON) $(ARGS)

lab: $(READY) ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab notebooks/00_start_here.ipynb

pages: $(READY) ## execute the lessons and build a site that opens without a server (ARGS="--executed outputs")
	@$(BIN)/python -m helpers.run_lesson.site $(ARGS)

test: lint ## check the style, then run every test
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-browser: $(READY) ## run lessons in JupyterLab in a real browser
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || $(BIN)/python -m playwright install chromium
	@$(BIN)/python -m pytest -m browser tests/test_browser.py

lint: $(READY) ## check code, spelling and notebook style
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m codespell_lib notebooks README.md helpers data/make tests
	@$(BIN)/python -m tests.notebook_style
	@echo "lint: no problems"

clean-notebooks: $(READY) ## strip outputs and stray metadata from the notebooks
	@$(BIN)/python -m tests.notebook_style --clean

# Created once, and again when the dependencies change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "'$(PYTHON)' is older than Python 3.11. Name a newer one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Setting up .venv. The first time, this downloads several hundred MB (a few GB on Linux, for torch's CUDA"
	@echo "libraries) and takes a few minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
