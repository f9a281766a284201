# make serve: everything from a fresh clone to a chat page. make help lists the rest.

BUILD := build/release
NIBBLE := $(BUILD)/nibble
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL := models/SmolLM2-135M-Instruct-NVFP4
VENV := .venv
PORT ?= 8000

# GPU code is compiled where there is a GPU, or with CUDA=1; CUDA=0 leaves it out.
CUDA ?= $(if $(wildcard /dev/nvidiactl),1,0)
PRESET := cmake --preset release -DNIBBLE_CUDA=$(if $(filter 1,$(CUDA)),ON,OFF)

.DEFAULT_GOAL := help
.PHONY: help serve build test model packages packages-test configure-tests bench fuzz check-long format lint install clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: build model  ## build, fetch SmolLM2, quantise it to NVFP4 and serve it with a chat page
	$(NIBBLE) serve $(MODEL) --port $(PORT) --served-model-name $(notdir $(MODEL)) \
		--override-generation-config '{"temperature": 0.2, "top_p": 0.9}'

build: packages  ## build/release/nibble; with GPU code where there is a GPU, or with CUDA=1
	@grep -qs '^NIBBLE_CUDA:BOOL=$(if $(filter 1,$(CUDA)),ON,OFF)' $(BUILD)/CMakeCache.txt || $(PRESET) $(if $(wildcard $(BUILD)/build.ninja),,-DNIBBLE_TESTS=OFF)
	cmake --build $(BUILD) --target nibble

model: $(MODEL)/config.json  ## fetch SmolLM2 and make its NVFP4 checkpoint

$(GGUF):
	packaging/fetch-smollm2.sh $@

$(MODEL)/config.json: | $(GGUF) build
	$(NIBBLE) quantize $(GGUF) $(MODEL) --force

test: packages-test configure-tests build model $(VENV)/ready  ## unit and end-to-end tests of the release build
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure -j2

configure-tests:
	@grep -qs '^NIBBLE_TESTS:BOOL=ON' $(BUILD)/CMakeCache.txt || $(PRESET) -DNIBBLE_TESTS=ON

$(VENV)/ready: tests/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

packages:
	@packaging/install-packages.sh build

packages-test:
	@packaging/install-packages.sh build test

bench: build model  ## kernels beside the machine's ceilings, then SmolLM2 end to end
	$(NIBBLE) bench kernels --threads 1
	$(NIBBLE) bench model $(MODEL) --threads 1 --prompt 64 --decode 64
	$(NIBBLE) bench model $(MODEL) --threads 1 --prompt 64 --decode 64 --batch 8

fuzz:  ## every fuzz target for SECONDS (default 10) seconds
	tools/fuzz.sh $(or $(SECONDS),10)

check-long: packages-test  ## fuzz targets for a minute each, and a soak of the server
	tools/fuzz.sh 60
	$(MAKE) build model $(VENV)/ready
	$(VENV)/bin/python tests/soak/soak.py $(NIBBLE) $(MODEL)

format:  ## clang-format over the tree
	git ls-files '*.cc' '*.h' | xargs clang-format-19 -i

lint:  ## style and layers, as CI checks them
	tools/check_layers.py
	git ls-files '*.cc' '*.h' | xargs clang-format-19 --dry-run -Werror

install: build  ## to PREFIX (default /usr/local)
	install -D -m 755 $(NIBBLE) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/nibble

clean:  ## remove build output; models stay
	rm -rf build
