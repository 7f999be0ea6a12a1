# The CUDA build: the same program with -tags cuda, which needs cgo and a C compiler.
# CUDA's compiler and headers come from CUDA_HOME, or as PyPI packages into .cache.

CUDA_ARCHS   ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
                -gencode arch=compute_80,code=compute_80 -gencode arch=compute_90,code=compute_90
CUDA_CACHE   := $(CURDIR)/.cache
CUDA_PIP     := $(CUDA_CACHE)/cuda/nvidia/cu13
CUDA_ROOT    := $(or $(CUDA_HOME),$(CUDA_PIP))
CUDA_IMAGE   := $(addprefix kernels/cuda/,products.fatbin attention.fatbin rows.fatbin)
CUDA_ENV      = CGO_ENABLED=1 \
                CGO_CFLAGS="-I$(CURDIR)/kernels/cuda/driver -I$(CUDA_ROOT)/include" \
                CGO_LDFLAGS="-L$(CUDA_CACHE)/lib -ldl"

cuda: toolchain $(CUDA_IMAGE) $(CUDA_CACHE)/lib/libcuda.a ## build bin/manta-cuda (with and without a GPU it starts)
	@$(CUDA_ENV) $(GO) build -trimpath -tags cuda -ldflags '$(LDFLAGS)' -o bin/manta-cuda .

gpu-test: gpu-binary ## build .cache/gpu/cuda.test and, where a GPU is, run its tests
	@if [ -e /dev/nvidiactl ]; then cd kernels/cuda && $(CUDA_CACHE)/gpu/cuda.test -test.v; \
	  else echo "no GPU here: run .cache/gpu/cuda.test on a machine with a driver"; fi

gpu-bench: gpu-binary ## measure this machine's GPU; prints each figure beside its limit
	@cd kernels/cuda && $(CUDA_CACHE)/gpu/cuda.test -test.run '^$$' -test.bench . -test.benchtime 1x

# The program with a device that faults at SIGUSR2, and the engine's tests.
gpu-fault: toolchain $(CUDA_IMAGE) $(CUDA_CACHE)/lib/libcuda.a
	@mkdir -p $(CUDA_CACHE)/gpu
	@$(CUDA_ENV) $(GO) build -trimpath -tags 'cuda fault' -ldflags '$(LDFLAGS)' -o $(CUDA_CACHE)/gpu/manta-fault .
	@$(CUDA_ENV) $(GO) test -c -tags cuda -ldflags '-s -w' -o $(CUDA_CACHE)/gpu/engine.test ./runtime/engine

gpu-binary: toolchain $(CUDA_IMAGE) $(CUDA_CACHE)/lib/libcuda.a
	@mkdir -p $(CUDA_CACHE)/gpu
	@$(CUDA_ENV) $(GO) test -c -tags cuda -o $(CUDA_CACHE)/gpu/cuda.test ./kernels/cuda

kernels/cuda/%.fatbin: kernels/cuda/src/%.cu $(wildcard kernels/cuda/src/*.cuh) | $(CUDA_ROOT)/bin/nvcc
	@$(CUDA_ROOT)/bin/nvcc -std=c++17 -O3 -t 2 --expt-relaxed-constexpr $(CUDA_ARCHS) -fatbin -o $@ $<

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

.PHONY: cuda gpu-test gpu-bench gpu-binary gpu-fault
