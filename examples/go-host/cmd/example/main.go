// A program that fine-tunes a model and puts it into Ollama:
//
//	go run ./cmd/example -root ../.. -name qwen3:0.6b-personal DATA OUTPUT_DIR BASE_MODEL 3 [FLAGS OF run.sh]
//	go run ./cmd/example -root ../.. -name qwen3:0.6b-personal -resume RUN
//
// Its exit code is that of run.sh or export_ollama.sh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"example.com/finetune"
)

func main() {
	log.SetFlags(0)
	root := flag.String("root", ".", "the folder of run.sh")
	name := flag.String("name", "", "the model's name in Ollama (default: that of config.ini)")
	resume := flag.String("resume", "", "go on with this run")
	flag.Parse()

	options, err := read(flag.Args(), *resume)
	if err != nil {
		log.Fatal(err)
	}
	// Ctrl-C ends the training with a checkpoint.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if err := tune(ctx, finetune.Project{Root: *root}, options, *name); err != nil {
		log.Print(err)
		var failure *finetune.Error
		if !errors.As(err, &failure) {
			os.Exit(1)
		}
		if (failure.Kind == finetune.Interrupted || failure.Kind == finetune.EndedAtOnce) && failure.RunDir != "" {
			log.Printf("go on with: -resume %s", failure.RunDir)
		}
		os.Exit(max(1, failure.ExitCode))
	}
}

// read takes the four positions, each of which may be left out from the right, and the flags of run.sh after them.
func read(arguments []string, resume string) (finetune.Options, error) {
	options := finetune.Options{Resume: resume}
	positions := []*string{&options.Data, &options.Output, &options.Model, new(string)}
	for _, position := range positions {
		if len(arguments) == 0 || len(arguments[0]) > 0 && arguments[0][0] == '-' {
			break
		}
		*position, arguments = arguments[0], arguments[1:]
	}
	options.Args = arguments
	if epochs := *positions[3]; epochs != "" {
		var err error
		if options.Epochs, err = strconv.Atoi(epochs); err != nil {
			return options, fmt.Errorf("EPOCHS: %s is not a whole number", epochs)
		}
	}
	return options, nil
}

// tune runs, showing the progress, and exports.
func tune(ctx context.Context, project finetune.Project, options finetune.Options, name string) error {
	events := make(chan finetune.Event, 1000)
	options.Events = events
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		for event := range events {
			show(event)
		}
	}()
	result, err := project.Run(ctx, options)
	<-shown
	if err != nil {
		return err
	}
	exported, err := project.Export(ctx, result.RunDir, name)
	if exported.Modelfile != "" {
		fmt.Println("Modelfile:", exported.Modelfile)
	}
	if err != nil {
		return err
	}
	fmt.Println("ollama run", exported.Model)
	return nil
}

func show(event finetune.Event) {
	switch event.Event {
	case "started":
		fmt.Println("run:", event.Run)
	case "step":
		loss := "not a number"
		if event.Loss != nil {
			loss = strconv.FormatFloat(*event.Loss, 'f', 4, 64)
		}
		fmt.Printf("step %d/%d  loss %s  about %.0f s until all is done\n", event.Step, event.Total, loss, event.Left)
	case "checkpoint":
		fmt.Printf("step %d: %s\n", event.AtStep, filepath.Base(event.Path))
	case "stage":
		fmt.Printf("%s: %.1f s\n", event.Name, event.Seconds)
	case "warning":
		fmt.Println("warning:", event.Message)
	}
}
