package finetune

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// ended is how a started program ended.
type ended struct {
	program string
	code    int    // 128 + n after signal n, as a shell says it; -1 when the program could not be started
	said    string // the end of its stderr
	cause   error  // why it could not be started, or the error of a context that ended
}

// start runs a program of the project and waits for it.
func (p Project) start(ctx context.Context, program, dir string, arguments []string, stdout io.Writer) ended {
	root, err := filepath.Abs(p.Root) // the program may run in another directory
	if err != nil {
		return ended{program: program, code: -1, cause: err}
	}
	said := &tail{next: p.Log}
	out, err := newPipe(stdout)
	if err != nil {
		return ended{program: program, code: -1, cause: err}
	}
	errs, err := newPipe(said)
	if err != nil {
		out.close()
		return ended{program: program, code: -1, cause: err}
	}
	command := exec.CommandContext(ctx, filepath.Join(root, program), arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), p.Env...)
	if dir != "" {
		command.Env = append(command.Env, "PWD="+absolute(dir))
	}
	command.Stdout, command.Stderr = out.writing, errs.writing // Stdin stays nil, which is /dev/null
	// A session of its own: no terminal, and Ctrl-C in the host's terminal reaches the host alone, which then cancels.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The program alone gets the signal: it tells its own processes, and a second SIGTERM would mean "at once".
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = p.Grace
	if p.Grace == 0 {
		command.WaitDelay = DefaultGrace
	}
	if err := command.Start(); err != nil {
		out.close()
		errs.close()
		return ended{program: program, code: -1, cause: err}
	}
	out.writing.Close()
	errs.writing.Close()
	_ = command.Wait() // the state says more than this error
	// Whatever of it is still there (after SIGKILL, say) must not go on writing into the run's folder.
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	out.finish()
	errs.finish()
	return ended{program: program, code: exitCode(command.ProcessState), said: said.String(), cause: ctx.Err()}
}

// pipe carries one stream of the program. exec.Cmd's own pipes would keep Wait waiting for processes that have
// outlived the program, which are ended only after it.
type pipe struct {
	reading, writing *os.File
	done             chan struct{}
}

func newPipe(to io.Writer) (*pipe, error) {
	reading, writing, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &pipe{reading, writing, make(chan struct{})}
	go func() {
		defer close(p.done)
		_, _ = io.Copy(to, reading)
	}()
	return p, nil
}

// finish waits until all is read; for a process with a session of its own that has kept the stream, not for long.
func (p *pipe) finish() {
	select {
	case <-p.done:
	case <-time.After(2 * time.Second):
	}
	p.reading.Close()
	<-p.done
}

func (p *pipe) close() {
	p.writing.Close()
	p.finish()
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

func absolute(path string) string {
	if whole, err := filepath.Abs(path); err == nil {
		return whole
	}
	return path
}
