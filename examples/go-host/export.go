package finetune

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// Exported is where a run's model is to be found.
type Exported struct {
	Model     string // its name in Ollama: ollama run MODEL; "" when Ollama does not have it
	Modelfile string // beside the GGUF file; "" when it could not be written
}

// Export puts a finished run into Ollama under a name such as qwen3:0.6b-personal; an empty name is that of the run.
//
// Without Ollama the error is of the kind MachineError and Exported.Modelfile is set: the run's folder can be carried to
// where Ollama is, and `ollama create NAME -f MODELFILE` does the rest there. Every error is an *Error.
func (p Project) Export(ctx context.Context, runDir, name string) (Exported, error) {
	if runDir == "" { // of a run that failed before it had one; it would stand for the folder of this process
		return Exported{}, &Error{Kind: UserError, ExitCode: 2, Message: "no run directory to export: did the run end well?"}
	}
	arguments := []string{absolute(runDir)}
	if name != "" {
		arguments = append(arguments, name)
	}
	// Started in the run's folder, it leaves nothing in that of this process.
	dir := absolute(runDir)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		dir = "" // it says what is wrong with it
	}
	var heard listener
	ended := p.start(ctx, "export_ollama.sh", dir, arguments, &heard)
	if err := ended.failure("", absolute(runDir)); err != nil {
		return Exported{Modelfile: heard.lastLine}, err
	}
	file := "Modelfile." + strings.NewReplacer("/", "-", ":", "-").Replace(heard.lastLine)
	return Exported{Model: heard.lastLine, Modelfile: filepath.Join(absolute(runDir), file)}, nil
}
