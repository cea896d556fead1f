//go:build !linux

package dbtest

import "os/exec"

// StartTied starts cmd; done is closed when it has ended. Without Linux's
// parent-death signal, it may outlive a test process that is killed.
func StartTied(cmd *exec.Cmd) (done chan struct{}, err error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	return done, nil
}
