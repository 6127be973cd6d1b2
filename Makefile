# Everything a developer or CI needs; each target installs what it lacks, by package name.
#
#   make demo    a real guest, from nothing: builds, boots, runs a command in it
#   make test    all checks and all tests
#   make check   static checks and the documentation only
#   make bench   benchmarks: ratios against peers in the same run
#   make docs    the documentation as HTML and man pages
#   make fmt     format the code

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# wirt is installed compiled: a shell that forbids it would make each start parse everything.
unexport PYTHONDONTWRITEBYTECODE

RUN_PACKAGES := qemu-system-x86 qemu-utils ovmf mmdebstrap debian-archive-keyring e2fsprogs \
	uidmap openssh-client python3-venv swtpm
TEST_PACKAGES := $(RUN_PACKAGES) qemu-guest-agent perl mtools dosfstools fdisk openssl
TEST_PACKAGES += grub-rescue-pc grub-common grub-pc-bin grub-efi-amd64-bin
TEST_PACKAGES += bximage cloop-utils lzop lz4
TEST_PACKAGES += user-mode-linux uml-utilities dmg2img cryptsetup-bin
TEST_PACKAGES += xfsprogs
TEST_PACKAGES += nginx-light vsftpd tftpd-hpa
TEST_PACKAGES += libnbd-bin nbdkit
TEST_PACKAGES += vde2 vdeplug dnsmasq-base nftables iproute2 slirp4netns passt
TEST_PACKAGES += openssh-server iputils-ping tshark
BENCH_PACKAGES := libvirt-daemon libvirt-clients

.PHONY: demo test check bench docs fmt fuzz clean

demo: .packages-run $(VENV)/.run
	@sh tools/demo.sh $(BIN)/wirt

test: check .packages-test
	CI=$(CI) $(BIN)/pytest -n $${WIRT_TEST_JOBS:-2} --dist loadgroup

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.dev
	$(BIN)/python tools/reference.py docs/reference/generated
	$(BIN)/sphinx-build -qnW -b html docs docs/_build/html
	$(BIN)/sphinx-build -qnW -b man docs docs/_build/man

bench: .packages-bench $(VENV)/.dev
	$(BIN)/python -m bench

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.qcow2_mutations 100000
	$(BIN)/python -m tests.fuzz.formats 100000

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment: once for using wirt, once more with what its developers need.
$(VENV)/bin/pip:
	@tools/need-packages python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . -r requirements-dev.txt
	@touch $@ $(VENV)/.run

.PHONY: .packages-run .packages-test .packages-bench
.packages-run:
	@tools/need-packages $(RUN_PACKAGES)
.packages-test:
	@tools/need-packages $(TEST_PACKAGES)
.packages-bench:
	@tools/need-packages $(TEST_PACKAGES) $(BENCH_PACKAGES)

clean:
	rm -rf $(VENV) docs/_build docs/reference/generated .mypy_cache .ruff_cache .pytest_cache
