# make app    the page, at http://127.0.0.1:7860
# make train  a training run: make train ARGS="--preset tiny"
# make test   all tests, those in a browser too
# make lint   ruff's checks and format, mypy's types
# make web    the page without a server, in web/: any file server then serves it
# make directions            sliders and colours anew for the bundled weights, in minutes
# make directions DATA=...   with new readers of tags too, where assets/attributes holds none
# Each makes the environment it needs in .venv, on Debian, Ubuntu or anything with Python 3.11+.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet
# Pinned versions; a new commit of a requirements file installs anew.
READY = $(VENV)/ready
ROOT_DO = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: app train test lint web directions browser clean

# The runtime that draws in a visitor's browser: files of a package of npm, checked by hash. The two
# with .asyncify draw by WebGPU. The large ones are packed, since few file servers do that.
ORT = onnxruntime-web-1.30.0
ORT_SHA256 = d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71
ORT_FILES = ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
	ort.webgpu.min.mjs ort-wasm-simd-threaded.asyncify.mjs ort-wasm-simd-threaded.asyncify.wasm
RUNTIME = web/runtime/$(ORT).packed

# What finds faults that trouble screen readers, for the tests: one file of a package of npm.
AXE = axe-core-4.14.1
AXE_SHA256 = e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
CHECKER = tests/axe/$(AXE)/axe.min.js

NPM = command -v npm > /dev/null || { $(ROOT_DO) apt-get update && $(ROOT_DO) apt-get install -y npm; }

app: $(READY)-app
	$(VENV)/bin/python app.py $(ARGS)

train: $(READY)-train
	$(VENV)/bin/accelerate launch train.py $(ARGS)

# The readers learn from labelled faces; once there, they serve every later generator.
READERS = assets/attributes/README.md

directions: $(READY)-train $(READERS)
	$(VENV)/bin/python -m fitting.directions $(ARGS)

$(READERS):
	@test -n "$(DATA)" || { echo "Labelled faces are needed: make directions DATA=..." >&2; exit 1; }
	$(VENV)/bin/python -m fitting.attributes --data $(DATA)

# Some machines ask Python to keep no compiled code; hundreds of processes then compile it again.
test: $(READY)-test $(RUNTIME) $(CHECKER)
	PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(READY)-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

web: $(READY)-export $(RUNTIME)
	$(VENV)/bin/python -m studio.website --out web $(ARGS)
	@echo "$(VENV)/bin/python -m http.server --directory web 8000    shows it"

$(RUNTIME):
	@$(NPM)
	rm -rf web/runtime && mkdir -p web/runtime
	cd web/runtime && npm pack --silent $(subst web-,web@,$(ORT)) > /dev/null && \
		echo "$(ORT_SHA256)  $(ORT).tgz" | sha256sum --check --quiet && \
		tar xzf $(ORT).tgz --strip-components 2 $(ORT_FILES:%=package/dist/%) && \
		rm $(ORT).tgz && gzip -9 -n *.wasm
	touch $@

$(CHECKER):
	@$(NPM)
	rm -rf tests/axe && mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(subst core-,core@,$(AXE)) > /dev/null && \
		echo "$(AXE_SHA256)  $(AXE).tgz" | sha256sum --check --quiet && \
		tar xzf $(AXE).tgz --strip-components 1 package/axe.min.js package/LICENSE && \
		rm $(AXE).tgz
	touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(ROOT_DO) apt-get update && \
		$(ROOT_DO) apt-get install -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }

$(READY)-app: requirements.txt | $(VENV)/bin/pip
	$(PIP) -r $<
	touch $@

$(READY)-train: requirements-train.txt requirements.txt | $(VENV)/bin/pip
	$(PIP) -r $<
	touch $@

$(READY)-export: requirements-export.txt requirements.txt | $(VENV)/bin/pip
	$(PIP) -r $<
	touch $@

$(READY)-test: requirements-test.txt requirements-train.txt requirements-bench.txt requirements-export.txt \
		requirements.txt | $(VENV)/bin/pip
	$(PIP) -r $<
	$(VENV)/bin/python tests/browser.py $(if $(DEBIAN),chromium-headless-shell) || \
		$(MAKE) browser || $(VENV)/bin/python tests/browser.py
	touch $@

# Debian has a Chromium of its own, and a shell of it without windows, which opens the page in half
# the CPU time; Ubuntu's is a snap, so Playwright fetches one there.
DEBIAN = $(shell grep -x ID=debian /etc/os-release 2> /dev/null)

browser:
	$(if $(DEBIAN),$(ROOT_DO) apt-get update && $(ROOT_DO) apt-get install -y chromium-headless-shell,\
		$(VENV)/bin/playwright install --with-deps chromium)
	$(VENV)/bin/python tests/browser.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -rf web/runtime tests/axe web/style.css web/page.js web/words.json web/*.onnx
	rm -f web/*.safetensors web/generator.json
