//go:build tools

// Package helm pins the chart's client.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
