package finetune

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kind says whose turn it is after a failure.
type Kind int

const (
	RunError     Kind = iota + 1 // exit 1: failed while running; what is safe stands in the message
	UserError                    // exit 2: settings, arguments or data are wrong; nothing was started
	MachineError                 // exit 3: something is missing, too small or out of reach; nothing was started
	Interrupted                  // exit 130, 143: stopped after a full checkpoint; Options.Resume goes on
	EndedAtOnce                  // exit 4: ended by a second signal; the steps since the last checkpoint are lost, Options.Resume goes on from it
)

func (k Kind) String() string {
	switch k {
	case UserError:
		return "wrong settings or data"
	case MachineError:
		return "machine not ready"
	case Interrupted:
		return "interrupted"
	case EndedAtOnce:
		return "ended at once"
	default:
		return "failed"
	}
}

// Error is how run.sh or export_ollama.sh failed.
type Error struct {
	Kind     Kind
	ExitCode int    // 128 + n when signal n ended it; -1 when it could not be started
	Message  string // for people: what was found, where, and what would do
	RunDir   string // "" when there is none; with one, Options.Resume may go on
	Cause    error  // the context's error when that ended the program, or why it could not be started
}

func (e *Error) Error() string { return e.Kind.String() + ": " + e.Message }

// Unwrap lets errors.Is(err, context.Canceled) tell a run that was cancelled from one that somebody else stopped.
func (e *Error) Unwrap() error { return e.Cause }

// failure is the *Error of a program that did not end with 0. message is what its last event said, if it said any.
func (e ended) failure(message, runDir string) error {
	if e.code == 0 {
		return nil
	}
	if message == "" {
		message = lastMessage(e.said)
	}
	if message == "" && e.code < 0 {
		message = e.cause.Error()
	}
	if message == "" {
		message = fmt.Sprintf("%s ended with exit code %d and without a message", e.program, e.code)
	}
	which := kind(e.code)
	if e.code < 0 && (errors.Is(e.cause, context.Canceled) || errors.Is(e.cause, context.DeadlineExceeded)) {
		which = Interrupted // before it could begin
	}
	return &Error{Kind: which, ExitCode: e.code, Message: message, RunDir: runDir, Cause: e.cause}
}

func kind(code int) Kind {
	switch code {
	case 2:
		return UserError
	case 3, -1, 126, 127: // 126 and 127: a shell that cannot run or find a program
		return MachineError
	case 4:
		return EndedAtOnce
	case 130, 143:
		return Interrupted
	default:
		return RunError
	}
}

// lastMessage is the error at the end of a log: from the last line that begins with "error: " on, or the last ten lines.
func lastMessage(log string) string {
	const mark = "error: "
	log = strings.TrimSpace(log)
	if at := strings.LastIndex("\n"+log, "\n"+mark); at >= 0 {
		return log[at+len(mark):]
	}
	lines := strings.Split(log, "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// tail passes a log on and keeps its end.
type tail struct {
	next io.Writer
	kept []byte
}

const tailSize = 16 << 10 // a refused data file names up to some dozens of rows

func (t *tail) Write(data []byte) (int, error) {
	t.kept = append(t.kept, data...)
	if len(t.kept) > 2*tailSize {
		t.kept = append([]byte(nil), t.kept[len(t.kept)-tailSize:]...)
	}
	if t.next != nil {
		_, _ = t.next.Write(data) // a log that cannot be written stops no training
	}
	return len(data), nil
}

func (t *tail) String() string {
	return strings.ToValidUTF8(string(t.kept[max(0, len(t.kept)-tailSize):]), "")
}
