//go:build !linux

package faults

import "errors"

func mount(string, string, string) error { return errors.ErrUnsupported }
func unmount(string) error               { return errors.ErrUnsupported }
func readOnly(string, bool) error        { return errors.ErrUnsupported }

func mountNew(string, string, string, string) error { return errors.ErrUnsupported }
func freeze(string, bool) error                     { return errors.ErrUnsupported }
