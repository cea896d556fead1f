package dbtest

import (
	"runtime/debug"
	"slices"
)

// Race tells whether the race detector is on, which makes tests slower by an order
// of magnitude.
func Race() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
