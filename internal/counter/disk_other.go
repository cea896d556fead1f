//go:build !linux && !darwin

package counter

import (
	"errors"
	"runtime"
)

// OpenDisk says that there is none here.
func OpenDisk(string) (Disk, error) {
	return nil, errors.New("a spool needs Linux or macOS, this is " + runtime.GOOS + ": leave it empty, and counts are in memory only")
}
