//go:build tools

// Package tools pins the conformance suite that tests/csi/build builds.
package tools

import _ "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
