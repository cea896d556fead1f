//go:build !linux && !darwin

package database

// born tells nothing here.
func born(string) uint64 { return 0 }
