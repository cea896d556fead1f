package dbtest

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Kill ends every process of the server with SIGKILL, as kill -9 of all of them
// does: nobody gets to say goodbye.
func (s *Server) Kill() error {
	if err := s.Pause(); err != nil { // so that none starts another meanwhile
		return err
	}
	if err := s.signalAll(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.done
	s.cmd = nil
	return nil
}

// PauseBackend stops one process of the server where it stands; ResumeBackend
// lets it go on.
func (s *Server) PauseBackend(pid int) error  { return s.signalBackend(pid, syscall.SIGSTOP) }
func (s *Server) ResumeBackend(pid int) error { return s.signalBackend(pid, syscall.SIGCONT) }

// signalBackend signals a process if the server started it.
func (s *Server) signalBackend(pid int, sig syscall.Signal) error {
	out, err := exec.Command("ps", "-o", "ppid=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	if parent := strings.TrimSpace(string(out)); parent != strconv.Itoa(s.cmd.Process.Pid) {
		return fmt.Errorf("process %d is not the server's: its parent is %s", pid, parent)
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
