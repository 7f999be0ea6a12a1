// Package chart holds the Helm chart, and the tests of what people install: that
// values pass their schema, that bad ones are refused with a sentence, that the
// manifests in examples are the chart's, and that rules and dashboards name metrics
// that the program has. Tests that need helm carry the build tag helm (make
// chart-check); none needs a cluster, deploy/e2e does that.
package chart
