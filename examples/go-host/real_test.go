package finetune

// These tests run the real run.sh and export_ollama.sh. tests/test_go_host.py starts them, with
//   FINETUNE_ROOT  the folder of run.sh
//   FINETUNE_WORK  a folder with config.ini, rows.jsonl and the folder `model` that they name

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const colonName = "qwen3:0.6b-personal-20260214"

func realProject(t *testing.T) (project Project, work string) {
	t.Helper()
	root, work := os.Getenv("FINETUNE_ROOT"), os.Getenv("FINETUNE_WORK")
	if root == "" || work == "" {
		t.Skip("FINETUNE_ROOT and FINETUNE_WORK are not set: tests/test_go_host.py sets them")
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(work, "out put", "finetune_*", "finetune.log"))
			for _, log := range logs {
				text, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", log, text[max(0, len(text)-4000):])
			}
		}
	})
	return Project{Root: root}, work
}

// minutes is a context for runs of some ten seconds each, on a machine that may be busy.
func minutes(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx, cancel
}

// status is status.json of a run.
func status(t *testing.T, run string) (state string, step int) {
	t.Helper()
	var status struct {
		State string
		Step  int
	}
	text, err := os.ReadFile(filepath.Join(run, "status.json"))
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	if err != nil {
		t.Fatal(err)
	}
	return status.State, status.Step
}

// mustBeComplete checks what a finished run leaves.
func mustBeComplete(t *testing.T, run, name string) {
	t.Helper()
	if state, _ := status(t, run); state != "completed" {
		t.Errorf("%s is %s", run, state)
	}
	for _, file := range []string{"report.json", "Modelfile", "merged/model.safetensors", name + ".Q4_K_M.gguf"} {
		if info, err := os.Stat(filepath.Join(run, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// pathWithout is $PATH without the folders that have a program; pathWith puts one in front.
func pathWithout(program string) string {
	var folders []string
	for _, folder := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(folder, program)); err != nil {
			folders = append(folders, folder)
		}
	}
	return "PATH=" + strings.Join(folders, string(filepath.ListSeparator))
}

// Two runs at once into one folder, with relative paths from another working directory. One is heard by nobody; the
// other is started with its three streams closed, and with four bare arguments, as the simplest host does it.
func TestRealTwoRunsAtOnceAndExport(t *testing.T) {
	project, work := realProject(t)
	ctx, _ := minutes(t)
	config := filepath.Join(work, "config.ini")
	closed := exec.CommandContext(ctx, "sh", "-c", `exec "$@" <&- >&- 2>&-`, "sh", filepath.Join(project.Root, "run.sh"),
		"rows.jsonl", "out put", "./model", "1", "--config", config)
	closed.Dir, closed.SysProcAttr = work, &syscall.SysProcAttr{Setsid: true}
	if err := closed.Start(); err != nil {
		t.Fatal(err)
	}
	events := make(chan Event) // never read
	result, err := project.Run(ctx, Options{Data: "rows.jsonl", Output: "out put", Model: "./model", Epochs: 1, Dir: work,
		Args: []string{"--config", config, "--name", colonName}, Events: events})
	if closedErr := closed.Wait(); closedErr != nil {
		t.Error("with closed streams:", closedErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if result.Missed < 10 {
		t.Error("nobody read, but only", result.Missed, "events were left out")
	}
	whole, _ := filepath.EvalSymlinks(work)
	if got, _ := filepath.EvalSymlinks(filepath.Dir(result.RunDir)); got != filepath.Join(whole, "out put") {
		t.Error("run directory:", result.RunDir)
	}
	mustBeComplete(t, result.RunDir, "qwen3-0.6b-personal-20260214")
	runs, _ := filepath.Glob(filepath.Join(work, "out put", "finetune_*"))
	if len(runs) != 2 {
		t.Fatalf("not two runs: %q", runs)
	}
	for _, run := range runs {
		if filepath.Base(run) != filepath.Base(result.RunDir) {
			mustBeComplete(t, run, "tiny")
		}
	}

	modelfile := filepath.Join(result.RunDir, "Modelfile.qwen3-0.6b-personal-20260214")
	project.Env = []string{pathWithout("ollama")}
	exported, err := project.Export(ctx, result.RunDir, colonName)
	if exported != (Exported{"", modelfile}) {
		t.Errorf("without Ollama: %+v", exported)
	}
	if failure := failed(t, err); failure.Kind != MachineError || !strings.Contains(failure.Message, "Ollama is not installed here") {
		t.Errorf("without Ollama: %+v", failure)
	}
	if _, err := os.Stat(modelfile); err != nil {
		t.Error(err)
	}

	bin := t.TempDir()
	fakeOllama, _ := filepath.Abs("../../tests/fake_ollama.sh") // no server here: a fake one, that keeps what it is given
	if err := os.Symlink(fakeOllama, filepath.Join(bin, "ollama")); err != nil {
		t.Fatal(err)
	}
	project.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "FAKE_OLLAMA=" + bin, "OLLAMA_HOST=127.0.0.1:9"} // no real one, should there be one
	exported, err = project.Export(ctx, result.RunDir, colonName)
	if err != nil || exported != (Exported{colonName, modelfile}) {
		t.Errorf("with Ollama: %+v %v", exported, err)
	}
	given, _ := os.ReadFile(filepath.Join(bin, "Modelfile"))
	if !strings.Contains(string(given), "FROM ./qwen3-0.6b-personal-20260214.Q4_K_M.gguf\n") {
		t.Errorf("Ollama was given:\n%s", given)
	}
}

// A run is cancelled in mid-training; another host goes on with it, and is killed outright: the run does not notice.
func TestRealCancelThenResumeThenTheHostIsKilled(t *testing.T) {
	project, work := realProject(t)
	ctx, cancel := minutes(t)
	events := make(chan Event, 1000)
	var seen []int
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for event := range events {
			if event.Event == "step" {
				seen = append(seen, event.Step)
				cancel()
			}
		}
	}()
	_, err := project.Run(ctx, Options{Dir: work, Output: "out put", Events: events,
		Args: []string{"--config", filepath.Join(work, "config.ini"), "--set", "Training.MAX_STEPS=100", "--set", "Training.SAVE_STEPS=50"}})
	<-heard
	failure := failed(t, err)
	if failure.Kind != Interrupted || failure.ExitCode != 143 || !errors.Is(err, context.Canceled) || !strings.Contains(failure.Message, "--resume") {
		t.Fatalf("%+v", failure)
	}
	state, stopped := status(t, failure.RunDir)
	if state != "interrupted" || len(seen) == 0 || stopped != seen[len(seen)-1] || stopped >= 100 {
		t.Fatalf("%s at step %d, after the events of steps %v", state, stopped, seen)
	}

	killHost(t, project, failure.RunDir, stopped)
	for end := time.Now().Add(8 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if state, step := status(t, failure.RunDir); state == "completed" {
			break
		} else if state != "running" || time.Now().After(end) {
			t.Fatalf("without its host the run is %s at step %d", state, step)
		}
	}
	mustBeComplete(t, failure.RunDir, "tiny")
	if got := steps(t, failure.RunDir); len(got) != 100 {
		t.Errorf("steps %v", got)
	}
}

// killHost lets cmd/example resume a run, and kills it at the first step that is done.
func killHost(t *testing.T, project Project, run string, stopped int) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/example").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	host := exec.Command(program, "-root", project.Root, "-resume", run)
	said, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	step := regexp.MustCompile(`^step (\d+)/100  loss `)
	found := false
	for lines := bufio.NewScanner(said); !found && lines.Scan(); {
		if match := step.FindStringSubmatch(lines.Text()); match != nil {
			found = true
			if first, _ := strconv.Atoi(match[1]); first != stopped+1 {
				t.Errorf("stopped after step %d, resumed with step %d", stopped, first)
			}
		}
	}
	_ = host.Process.Kill()
	_ = host.Wait()
	if state, step := status(t, run); !found || state != "running" {
		t.Fatalf("the host was to be killed during the run, but that is %s at step %d", state, step)
	}
}

// steps are the steps in events.jsonl, which must be 1, 2, 3, ...
func steps(t *testing.T, run string) []int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(run, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		event, ok := parse([]byte(line))
		if !ok {
			t.Errorf("no event: %s", line)
		}
		if event.Event == "step" {
			if found = append(found, event.Step); event.Step != len(found) {
				t.Errorf("step %d is number %d", event.Step, len(found))
			}
		}
	}
	return found
}

// What is wrong is the user's error and says where: a row in the last event, a setting on stderr. Nothing is left behind.
func TestRealMistakesAreNamed(t *testing.T) {
	project, work := realProject(t)
	ctx, _ := minutes(t)
	rows := `{"prompt":"a","completion":"b"}` + "\n" + `{"prompt":"a","completion":""}` + "\n"
	if err := os.WriteFile(filepath.Join(work, "bad.jsonl"), []byte(rows), 0o644); err != nil {
		t.Fatal(err)
	}
	data := Options{Dir: work, Data: "bad.jsonl", Output: "nothing here", Args: []string{"--config", "config.ini"},
		Events: make(chan Event, 100)}
	setting := Options{Dir: work, Data: "rows.jsonl", Output: "nothing here", Args: []string{"--config", "config.ini", "--set", "LoRA.R=0"}}
	for want, options := range map[string]Options{"bad.jsonl:2: ": data, "--set LoRA.R=0: must be at least 1": setting} {
		result, err := project.Run(ctx, options)
		failure := failed(t, err)
		if failure.Kind != UserError || failure.ExitCode != 2 || failure.RunDir != "" || result.RunDir != "" ||
			!strings.Contains(failure.Message, want) {
			t.Errorf("%q is not in %+v", want, failure)
		}
	}
	if _, err := os.Stat(filepath.Join(work, "nothing here")); err == nil {
		t.Error("OUTPUT_DIR was made for nothing")
	}
}

// The shipped model, and rows as a chat host writes them. The result is the one line on stdout.
func TestRealEmbeddedModelWithTheRowsOfAHost(t *testing.T) {
	project, work := realProject(t)
	ctx, _ := minutes(t)
	file, err := os.Create(filepath.Join(work, "chat.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	rows := json.NewEncoder(file) // writes <, > and & as \u003c, ...
	for i := 1; i <= 12; i++ {
		row := map[string]string{"prompt": fmt.Sprintf("用户: %d < %d & %d > 0?", i, i+1, i), "completion": "助手: 是的。"}
		if err := rows.Encode(row); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	result, err := project.Run(ctx, Options{Data: "chat.jsonl", Output: "out put", Model: "embedded/SmolLM2-135M-Instruct",
		Epochs: 3, Dir: work, Args: []string{"--name", colonName, "--set", "Training.MAX_STEPS=1"}})
	if err != nil {
		t.Fatal(err)
	}
	mustBeComplete(t, result.RunDir, "qwen3-0.6b-personal-20260214")
	if got := steps(t, result.RunDir); len(got) != 1 {
		t.Errorf("steps %v", got)
	}
	var report struct{ Data struct{ Rows map[string]int } }
	text, err := os.ReadFile(filepath.Join(result.RunDir, "report.json"))
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	if err != nil || report.Data.Rows["training"]+report.Data.Rows["validation"] != 12 {
		t.Errorf("%+v %v", report, err)
	}
	log, _ := os.ReadFile(filepath.Join(result.RunDir, "finetune.log"))
	if strings.Contains(string(log), "用户: ") || !strings.Contains(string(log), "是的。") {
		t.Error("the roles in front were not taken off")
	}
}
