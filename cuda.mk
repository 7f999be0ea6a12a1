# The CUDA build: the same program with -tags cuda, which needs cgo and a C compiler.
# CUDA's compiler and headers come from CUDA_HOME, or as PyPI packages into .cache.

CUDA_ARCHS   ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
                -gencode arch=compute_80,code=compute_80 -gencode arch=compute_90,code=compute_90
CUDA_CACHE   := $(CURDIR)/.cache
CUDA_PIP     := $(CUDA_CACHE)/cuda/nvidia/cu13
CUDA_ROOT    := $(or $(CUDA_HOME),$(CUDA_PIP))
CUDA_IMAGE   := $(addprefix kernels/cuda/,products.fatbin attention.fatbin rows.fatbin collectives.fatbin)
CUDA_PKGS    := . ./kernels/cuda ./node/... ./runtime/model ./runtime/engine
CUDA_ENV      = CGO_ENABLED=1 \
                CGO_CFLAGS="-I$(CURDIR)/kernels/cuda/driver -I$(CUDA_ROOT)/include" \
                CGO_LDFLAGS="-L$(CUDA_CACHE)/lib -ldl"

cuda: toolchain $(CUDA_IMAGE) $(CUDA_CACHE)/lib/libcuda.a ## build and check bin/manta-cuda (with and without a GPU it starts)
	@$(CUDA_ENV) $(GO) build -trimpath -tags cuda -ldflags '$(LDFLAGS)' -o bin/manta-cuda .
	@$(CUDA_ENV) $(GO) vet -tags cuda,fault $(CUDA_PKGS)
	@$(CUDA_ENV) $(GO) run $(STATIC) -tags cuda,fault $(CUDA_PKGS)

GPU          := $(CUDA_CACHE)/gpu
# Work to measure with: shapes/NAME/config.json, chat-1000.json, uniform-256.json.
BENCH_DIR    ?= ../shared/bench

gpu-test: gpu-binaries ## build .cache/gpu and, where a GPU is, test kernels, goldens, the engine, and serving through faults
	@if [ ! -e /dev/nvidiactl ]; then echo "no GPU here: run .cache/gpu's programs on a machine with a driver"; else set -e; \
	  (cd kernels/cuda && $(GPU)/cuda.test -test.v); \
	  (cd runtime/model && $(GPU)/model.test -test.v -test.run OnGPU); \
	  (cd runtime/engine && $(GPU)/engine.test -test.v -test.run OnGPU); \
	  (cd deploy/e2e && MANTA_BINARY=$(GPU)/manta-fault $(GPU)/e2e.test -test.v -test.run Device -fault); fi

gpu-bench: gpu-binaries ## measure this machine's GPU: kernels and steps beside their limits, then serving BENCH_DIR's work
	@cd kernels/cuda && $(GPU)/cuda.test -test.run '^$$' -test.bench . -test.benchtime 1x
	@$(GPU)/manta bench load $(BENCH_DIR)/shapes/llama3-8b --load-format dummy --max-num-seqs 1024 --max-model-len 4096 \
	  --streams 1x1024x128,64x512x48,128x512x48,256x512x48 --workload $(BENCH_DIR)/chat-1000.json
	@$(GPU)/manta bench --self --model $(BENCH_DIR)/shapes/llama3-8b --workload $(BENCH_DIR)/chat-1000.json --max-concurrency 1000 \
	  --vocab-size 100000 -- --load-format dummy --max-num-seqs 1024 --max-model-len 4096
	@$(GPU)/manta bench load $(BENCH_DIR)/shapes/qwen3-0.6b --load-format dummy --max-num-seqs 1024 --max-model-len 4096 \
	  --streams 1x1024x128,256x512x48 --workload $(BENCH_DIR)/uniform-256.json

# All that a machine with nothing but a driver needs to test and measure. manta-fault
# has a device that faults at SIGUSR2 and stands still at SIGUSR1 and SIGALRM.
gpu-binaries: toolchain $(CUDA_IMAGE) $(CUDA_CACHE)/lib/libcuda.a
	@mkdir -p $(GPU)
	@$(CUDA_ENV) $(GO) build -trimpath -tags cuda -ldflags '$(LDFLAGS)' -o $(GPU)/manta .
	@$(CUDA_ENV) $(GO) build -trimpath -tags 'cuda fault' -ldflags '$(LDFLAGS)' -o $(GPU)/manta-fault .
	@for package in kernels/cuda runtime/model runtime/engine; do \
	  $(CUDA_ENV) $(GO) test -c -tags cuda -ldflags '-s -w' -o $(GPU)/$$(basename $$package).test ./$$package || exit 1; done
	@$(GO) test -c -tags e2e -ldflags '-s -w' -o $(GPU)/e2e.test ./deploy/e2e

kernels/cuda/%.fatbin: kernels/cuda/src/%.cu $(wildcard kernels/cuda/src/*.cuh) | $(CUDA_ROOT)/bin/nvcc
	@$(CUDA_ROOT)/bin/nvcc -std=c++17 -O3 -t 2 -compress-mode=size --expt-relaxed-constexpr $(CUDA_ARCHS) -fatbin -o $@ $<

$(CUDA_CACHE)/lib/libcuda.a: kernels/cuda/driver/libcuda.c
	@mkdir -p $(dir $@)
	@$(or $(CC),cc) -O2 -fPIC -c -o $(@:.a=.o) $<
	@rm -f $@ && ar rcs $@ $(@:.a=.o)

# 271 MB unpacked; the versions go together.
$(CUDA_PIP)/bin/nvcc:
	@python3 -m pip install -q --no-deps --target $(CUDA_CACHE)/cuda nvidia-cuda-nvcc==13.0.88 \
	  nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.88 nvidia-cuda-cccl==13.0.85
	@chmod +x $(CUDA_PIP)/bin/* $(CUDA_PIP)/nvvm/bin/*
	@touch $@

.PHONY: cuda gpu-test gpu-bench gpu-binaries
