# make setup | demo | rehearse | rehearse-processes | test | lint | bench | weights     (PYTHON=python3.12 make setup for another interpreter)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: setup demo rehearse rehearse-processes test test-bridges test-rest lint bench weights clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# The stamp makes a second call do nothing, without network; it is newer than what it was made from. Python compiles
# the few modules that are imported at their first import; pip would compile all of them.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python >= 3.11 needed, $(PYTHON) is older; set PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 8e9)' || { echo "error: .venv takes 7 GB and less than 8 are free here; make room" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/python harness/run.py suite=all preset=demo

# Two halves at a time, of one thread each and about as long; what each prints is shown when it ends.
# The launched stages come first: a training inside of pytest leaves the port of its process group behind.
BRIDGES := tests/harness/test_llava_launched.py tests/encoder tests/llava_bridge tests/rae_bridge
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
test: setup
	$(MAKE) -j2 --output-sync=target test-bridges test-rest

test-bridges: setup
	$(PYTEST) $(BRIDGES)

test-rest: setup
	$(PYTEST) tests $(addprefix --ignore=,$(BRIDGES))

# The paper's protocol on a miniature of its sources: every stage and every key of both tables, no evidence.
rehearse: setup
	test -f data/replica/REPLICA.json || $(BIN)/python -m harness.replica data/replica
	$(BIN)/python harness/run.py suite=all preset=paper data_root=data/replica overrides=configs/rehearsals/paper.yaml encoders=[ov3-b,clip-b,ov3-own]

# LLaVA's stages of the rehearsal on two processes (gloo) under ZeRO-2, then ZeRO-3, set beside the table of one.
TWO := launch=torchrun processes=2 jobs=1
REHEARSE := $(BIN)/python harness/run.py suite=understanding preset=paper data_root=data/replica overrides=configs/rehearsals/paper.yaml
rehearse-processes: setup
	test -f data/replica/REPLICA.json || $(BIN)/python -m harness.replica data/replica
	$(REHEARSE)
	@for zero in zero2 zero3; do echo "== $$zero, two processes"; \
	  $(REHEARSE) $(TWO) llava.align.deepspeed=configs/deepspeed/$$zero.json llava.instruct.deepspeed=configs/deepspeed/$$zero.json \
	    runs_dir=runs/$$zero results_dir=results/rehearsal/$$zero || exit 1; \
	  $(BIN)/python harness/run.py compare results/rehearsal/understanding results/rehearsal/$$zero/rehearsal/understanding || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	@for subject in bench/[!_]*.py; do echo "== $$subject"; $(BIN)/python $$subject || exit 1; done

# Rebuilds weights/demo from nothing, about 7 and a half hours on one quiet core; resumes where it stopped.
weights: setup
	$(BIN)/python -m encoder.data.scenes.write configs/weights/scenes.yaml runs/weights/scenes
	$(BIN)/python -m encoder.train_vae configs/weights/vae-l1.yaml runs/weights/vae-l1
	$(BIN)/python -m encoder.train_vae configs/weights/vae-l2.yaml runs/weights/vae-l2
	$(BIN)/python -m encoder.train_vae configs/weights/vae.yaml runs/weights/vae
	$(call ship,vae)
	$(BIN)/python -m encoder.train configs/weights/ov3.yaml runs/weights/ov3
	$(call ship,ov3)
	$(BIN)/python -m encoder.train configs/weights/clip.yaml runs/weights/clip
	$(call ship,clip)
	$(BIN)/python -m rae_bridge.train_decoder configs/weights/clip_decoder.yaml runs/weights/clip_decoder
	$(call ship,clip_decoder)
	$(BIN)/python -m llava_bridge.train_llm configs/weights/llama-1.yaml runs/weights/llama-1
	$(BIN)/python -m llava_bridge.train_llm configs/weights/llama.yaml runs/weights/llama
	$(call ship,llama)

ship = rm -rf weights/demo/$(1) && mkdir -p weights/demo && cp -r runs/weights/$(1)/weights weights/demo/$(1)

clean:
	rm -rf runs
