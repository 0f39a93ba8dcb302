//go:build tools

// Package runc pins the program that starts the test node's containers.
package runc

import (
	_ "github.com/opencontainers/runc"
)
