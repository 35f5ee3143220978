// Package finetune runs the fine-tuning program of this repository from a Go program.
//
// It starts run.sh, hands over its events while it works, and gives back the run's folder or an *Error; Export then puts
// the run into Ollama. Standard library only, on Linux and macOS. README.md says how your module uses it.
package finetune

import (
	"context"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultGrace is how long a cancelled program may take to end by itself. A run ends with a full checkpoint, which
// takes seconds on a small model and a minute on a large one.
const DefaultGrace = 2 * time.Minute

// Project is the folder that run.sh and export_ollama.sh stand in, and how they are started.
type Project struct {
	Root  string
	Env   []string      // "NAME=value", besides the environment of this process
	Log   io.Writer     // gets what the program tells people (its stderr); a writer that blocks, blocks the training
	Grace time.Duration // from SIGTERM to SIGKILL; 0 is DefaultGrace
}

// Options say what to train on what. An empty field leaves that setting to config.ini.
type Options struct {
	Data   string   // rows; relative to Dir, as are Output and Model
	Output string   // the folder that gets the run's own folder
	Model  string   // a Hub id, a folder, a .gguf file or an Ollama tag
	Epochs int      // 0: as config.ini says
	Args   []string // further flags of run.sh, such as "--name", "my-model"
	Resume string   // go on with this stopped run; Data, Output, Model and Epochs stay empty then
	Dir    string   // the working directory of the program; empty: that of this process

	// Events, if not nil, gets the run's events and is closed when the run has ended. The training never waits for a
	// reader: an event that finds the channel full is left out and counted in Result.Missed.
	Events chan<- Event
}

// Result is what a run has left.
type Result struct {
	RunDir string // absolute; "" when the run never began
	Missed int    // events that found Options.Events full
}

// Run trains, exports and checks a model, and returns when that is done or has failed; every error is an *Error.
//
// When ctx ends, the program gets SIGTERM: it writes a checkpoint, and the error is of the kind Interrupted. After
// Project.Grace it is killed. The program does not die with this process: a host that is killed loses nothing.
func (p Project) Run(ctx context.Context, o Options) (Result, error) {
	var heard listener
	if o.Events != nil {
		heard.events = o.Events
		defer close(o.Events)
	}
	ended := p.start(ctx, "run.sh", o.Dir, o.arguments(), &heard)
	result := Result{RunDir: heard.runDir, Missed: heard.missed}
	if o.Events == nil && filepath.IsAbs(heard.lastLine) { // without events stdout is this one line
		result.RunDir = heard.lastLine
	}
	err := ended.failure(heard.failure, result.RunDir)
	if err == nil && result.RunDir == "" {
		err = &Error{Kind: RunError, Message: "run.sh ended well but named no run directory"}
	}
	if err != nil {
		return result, err
	}
	return result, nil
}

// arguments are those of run.sh. "--" keeps a path that begins with a dash from being taken for a flag.
func (o Options) arguments() []string {
	var arguments []string
	if o.Events != nil {
		arguments = append(arguments, "--events")
	}
	if o.Resume != "" {
		arguments = append(arguments, "--resume", o.Resume)
	}
	arguments = append(arguments, o.Args...)
	epochs := ""
	if o.Epochs != 0 {
		epochs = strconv.Itoa(o.Epochs)
	}
	positions := []string{o.Data, o.Output, o.Model, epochs}
	if strings.Join(positions, "") == "" {
		return arguments
	}
	return append(append(arguments, "--"), positions...)
}
