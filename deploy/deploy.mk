# What runs it elsewhere: the image, the chart, the plain manifests, the rules.

HELM      ?= $(or $(shell command -v helm),$(firstword $(wildcard $(HOME)/.cache/manta-k8s/bin-*/helm)),helm)
PROMTOOL  ?= promtool
IMAGE     ?= manta:$(VERSION)
ARCH      := $(shell $(GO) env GOARCH)
PACK       = $(GO) run ./deploy/image/pack -name $(IMAGE)

image: toolchain ## the CPU image without Docker: dist/manta-image.tar
	@GOOS=linux $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/linux/manta .
	@GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o dist/linux/manta-declare ./deploy/image/declare
	@$(PACK) -arch $(ARCH) -max-mb 40 -out dist/manta-image.tar dist/linux/manta dist/linux/manta-declare

image-cuda: cuda ## the CUDA image without Docker, on Linux: dist/manta-cuda-image.tar
	@mkdir -p dist/cuda && cp bin/manta-cuda dist/cuda/manta
	@GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o dist/linux/manta-declare ./deploy/image/declare
	@$(PACK)-cuda -arch $(ARCH) -max-mb 200 -out dist/manta-cuda-image.tar dist/cuda/manta dist/linux/manta-declare

k8s-tools: toolchain ## build Kubernetes into the user's cache, for e2e-k8s
	@$(GO) test -count=1 -timeout 120m -tags kubernetes ./deploy/e2e/kubernetes -build 115m

e2e-k8s: toolchain k8s-tools ## the chart on a real Kubernetes on this machine, upgraded from BASE too (needs root)
	@rm -rf dist/base dist/k8s/0 && mkdir -p dist/base && if git archive $(BASE) 2>/dev/null | tar -x -C dist/base 2>/dev/null; \
	  then cd dist/base && GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o ../k8s/0/manta .; fi; rm -rf dist/base
	@for v in 1 2; do GOOS=linux $(GO) build -trimpath -ldflags '-s -w -X manta/internal/version.Version=$(VERSION)-e2e'$$v -o dist/k8s/$$v/manta . || exit 1; done
	@GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o dist/linux/manta-declare ./deploy/image/declare
	@$(GO) test -count=1 -timeout 20m -tags kubernetes -v ./deploy/e2e/kubernetes

manifests: ## render deploy/examples from the chart (needs helm)
	@HELM=$(HELM) deploy/examples/manifests.sh deploy/examples

chart-check: toolchain ## lint and render the chart, compare the manifests (needs helm)
	@HELM=$(HELM) $(GO) test -count=1 -tags helm ./deploy/chart

rules-check: ## test recording and alert rules (needs promtool)
	@$(PROMTOOL) check rules deploy/monitoring/rules.yaml
	@cd deploy/monitoring && $(PROMTOOL) test rules rules_test.yaml

.PHONY: k8s-tools e2e-k8s image image-cuda manifests chart-check rules-check
