# The README's commands. The build itself is CMake's: see CMakePresets.json.
#
#   make          build into build/release, installing missing Debian packages first
#   make demo     train a language model on English text and let it write
#   make test     the tests
#   make bench    the benchmarks, each against its bound
#   make deps     only install what is missing
#   make install  to PREFIX (/usr/local)

PREFIX ?= /usr/local
BUILD := build/release

.PHONY: all deps demo test bench install clean

all: deps
	@[ -f $(BUILD)/build.ninja ] || cmake --preset release
	@cmake --build $(BUILD)

deps:
	@tools/install-deps.sh

demo: all
	@tools/demo.sh $(BUILD)

test: all
	@cd $(BUILD) && ctest --output-on-failure --no-tests=error --timeout 300

bench: all
	@$(BUILD)/heddle bench

install: all
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	@rm -rf build
