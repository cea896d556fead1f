package dbtest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// StartTied starts cmd so that it ends with this process, however that ends; done
// is closed when it has ended. The kernel ties a child to the thread that started
// it, so that thread waits, too.
func StartTied(cmd *exec.Cmd) (done chan struct{}, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	done = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(done)
		}
	}()
	return done, <-started
}
