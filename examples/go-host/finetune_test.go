package finetune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake makes a project whose run.sh and export_ollama.sh are short scripts: fakes that behave as each test needs it.
// The tests in real_test.go run the real ones.
func fake(t *testing.T, script string) Project {
	t.Helper()
	root := filepath.Join(t.TempDir(), "a folder 训练")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\necho 'this is a fake' >&2\nhere=$(dirname \"$0\")\n" + script + "\n"
	for _, name := range []string{"run.sh", "export_ollama.sh"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Project{Root: root, Grace: 5 * time.Second}
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// failed is the *Error in err; the test ends when there is none.
func failed(t *testing.T, err error) *Error {
	t.Helper()
	var failure *Error
	if !errors.As(err, &failure) {
		t.Fatalf("not an *Error: %v", err)
	}
	return failure
}

const startedAndDone = `echo '{"v":1,"event":"started","time":1.5,"run":"/out/run","pid":7,"total":2,"name":"my-model"}'
echo '{"v":1,"event":"done","time":2,"run":"/out/run","exit_code":0}'`

func TestTheArgumentsArriveAsTheyAreWritten(t *testing.T) {
	for _, c := range []struct {
		options Options
		want    []string
	}{
		{Options{}, nil},
		{Options{Data: "-my 数据.jsonl", Output: "out; rm", Model: "qwen3:0.6b", Epochs: 3},
			[]string{"--", "-my 数据.jsonl", "out; rm", "qwen3:0.6b", "3"}},
		{Options{Data: "rows.jsonl", Args: []string{"--name", "a b"}}, []string{"--name", "a b", "--", "rows.jsonl", "", "", ""}},
		{Options{Resume: "/out/run", Events: make(chan Event, 9)}, []string{"--events", "--resume", "/out/run"}},
	} {
		p := fake(t, `for word in "$@"; do printf '%s\n' "$word" >>"$here/arguments"; done
echo /out/run`)
		_, _ = p.Run(background(t), c.options)
		written, _ := os.ReadFile(filepath.Join(p.Root, "arguments"))
		got := strings.Split(strings.TrimSuffix(string(written), "\n"), "\n")
		if want := append([]string{}, c.want...); !(len(want) == 0 && len(written) == 0) && !reflect.DeepEqual(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWithoutEventsTheLineOnStdoutIsTheRunDirectory(t *testing.T) {
	result, err := fake(t, "echo /out/run").Run(background(t), Options{})
	if err != nil || result.RunDir != "/out/run" {
		t.Fatal(result, err)
	}
}

func TestEventsArriveTypedAndInOrderAndTheChannelIsClosed(t *testing.T) {
	events := make(chan Event, 10)
	result, err := fake(t, `echo '{"v":1,"event":"started","time":1.5,"run":"/out/run","total":2,"name":"my-model"}'
echo '{"v":1,"event":"step","time":1.6,"step":1,"total":2,"epoch":0.5,"loss":1.25,"learning_rate":2e-4,"gradient_norm":null,"remaining":3.5,"peak_memory":703557632}'
echo '{"v":1,"event":"step","time":1.7,"step":2,"total":2,"loss":null}'
echo '{"v":1,"event":"done","time":2,"run":"/out/run","exit_code":0}'`).Run(background(t), Options{Events: events})
	if err != nil || result.RunDir != "/out/run" || result.Missed != 0 {
		t.Fatal(result, err)
	}
	var got []Event
	for event := range events {
		got = append(got, event)
	}
	if len(got) != 4 || got[0].Event != "started" || got[0].Name != "my-model" || got[3].Event != "done" || *got[3].ExitCode != 0 {
		t.Fatalf("%+v", got)
	}
	step := got[1]
	if step.Step != 1 || step.Total != 2 || *step.Loss != 1.25 || step.LearningRate != 2e-4 || step.GradientNorm != nil ||
		step.Remaining != 3.5 || step.PeakMemory != 703557632 || !bytes.HasPrefix(step.Raw, []byte(`{"v":1,`)) {
		t.Errorf("%+v", step)
	}
	if got[2].Loss != nil {
		t.Error("a loss that is no number is not 0")
	}
}

func TestWhatIsNoEventOfThisVersionIsPassedOver(t *testing.T) {
	events := make(chan Event, 10)
	result, err := fake(t, `echo 'a line of somebody else'
echo '{"v":2,"event":"started","run":"/wrong"}'
echo '{"v":1,"event":"environment","name":{"in":"another form"},"total":5}'
printf '{"v":1,"event":"warning","message":"%0100000d"}\n' 7
`+startedAndDone+`
printf '{"v":1,"event":"fai'`).Run(background(t), Options{Events: events})
	if err != nil || result.RunDir != "/out/run" {
		t.Fatal(result, err)
	}
	var names []string
	for event := range events {
		names = append(names, event.Event)
		if event.Event == "warning" && len(event.Message) != 100000 {
			t.Error("a long line is cut:", len(event.Message))
		}
	}
	if want := []string{"environment", "warning", "started", "done"}; !reflect.DeepEqual(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

func TestTheChildNeverWaitsForAReaderThatIsNotThere(t *testing.T) {
	events := make(chan Event) // no buffer, no reader
	result, err := fake(t, `i=0; while [ $i -lt 5000 ]; do
echo '{"v":1,"event":"step","step":1,"padding":"more than a pipe holds, all lines together"}'; i=$((i + 1)); done
`+startedAndDone).Run(background(t), Options{Events: events})
	if err != nil || result.RunDir != "/out/run" || result.Missed != 5002 {
		t.Fatal(result, err)
	}
}

func TestEachExitCodeIsAnErrorOfItsKind(t *testing.T) {
	for code, want := range map[int]Kind{1: RunError, 2: UserError, 3: MachineError, 4: EndedAtOnce, 130: Interrupted, 143: Interrupted,
		9: RunError, 126: MachineError, 127: MachineError} {
		_, err := fake(t, fmt.Sprintf("echo 'step 1/2' >&2; echo 'error: rows.jsonl:2: no answer' >&2; echo '  and more' >&2; exit %d", code)).
			Run(background(t), Options{})
		failure := failed(t, err)
		if failure.Kind != want || failure.ExitCode != code || failure.RunDir != "" || failure.Message != "rows.jsonl:2: no answer\n  and more" {
			t.Errorf("exit %d: %+v", code, failure)
		}
		if text := want.String() + ": rows.jsonl:2: no answer\n  and more"; err.Error() != text {
			t.Errorf("%q, not %q", err.Error(), text)
		}
	}
}

func TestTheLastEventGivesTheMessageAndTheRunDirectory(t *testing.T) {
	result, err := fake(t, `echo 'error: something for people' >&2
echo '{"v":1,"event":"started","run":"/out/run"}'
echo '{"v":1,"event":"failed","run":"/out/run","exit_code":1,"error":"training: out of memory"}'
exit 1`).Run(background(t), Options{Events: make(chan Event, 9)})
	failure := failed(t, err)
	if failure.Kind != RunError || failure.Message != "training: out of memory" || failure.RunDir != "/out/run" || result.RunDir != "/out/run" {
		t.Fatalf("%+v", failure)
	}
}

func TestARunDirectoryComesBackFromAFailureWithoutEventsToo(t *testing.T) {
	_, err := fake(t, "echo /out/run; echo 'error: training: out of memory' >&2; exit 1").Run(background(t), Options{})
	if failure := failed(t, err); failure.RunDir != "/out/run" || failure.Message != "training: out of memory" {
		t.Fatalf("%+v", failure)
	}
}

func TestWithoutAMarkTheLastTenLinesAreTheMessage(t *testing.T) {
	_, err := fake(t, "seq 1 20 >&2; exit 2").Run(background(t), Options{})
	if message := failed(t, err).Message; message != "11\n12\n13\n14\n15\n16\n17\n18\n19\n20" {
		t.Errorf("%q", message)
	}
}

func TestWithoutAWordTheExitCodeIsTheMessage(t *testing.T) {
	p := fake(t, "")
	if err := os.WriteFile(filepath.Join(p.Root, "run.sh"), []byte("#!/bin/sh\n# a fake that says nothing\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := p.Run(background(t), Options{})
	if message := failed(t, err).Message; message != "run.sh ended with exit code 7 and without a message" {
		t.Errorf("%q", message)
	}
}

func TestAnEndByASignalIsToldAsAShellTellsIt(t *testing.T) {
	for signal, want := range map[string]Kind{"KILL": RunError, "TERM": Interrupted, "INT": Interrupted} {
		_, err := fake(t, "kill -"+signal+" $$; sleep 9").Run(background(t), Options{})
		code := map[string]int{"KILL": 137, "TERM": 143, "INT": 130}[signal]
		if failure := failed(t, err); failure.Kind != want || failure.ExitCode != code {
			t.Errorf("%s: %+v", signal, failure)
		}
	}
}

func TestARunThatNamesNoDirectoryIsNoSuccess(t *testing.T) {
	for _, options := range []Options{{}, {Events: make(chan Event, 9)}} {
		_, err := fake(t, "echo usage: run.sh").Run(background(t), options)
		if failure := failed(t, err); failure.Kind != RunError || failure.Message != "run.sh ended well but named no run directory" {
			t.Errorf("%+v", failure)
		}
	}
}

func TestAProjectThatIsNotThereIsTold(t *testing.T) {
	events := make(chan Event)
	_, err := Project{Root: t.TempDir()}.Run(background(t), Options{Events: events})
	failure := failed(t, err)
	if failure.Kind != MachineError || failure.ExitCode != -1 || !errors.Is(err, os.ErrNotExist) || !strings.Contains(failure.Message, "run.sh") {
		t.Errorf("%+v", failure)
	}
	if _, open := <-events; open {
		t.Error("the channel must be closed")
	}
}

func TestCancellingAsksTheRunToStopAndWaitsForItsCheckpoint(t *testing.T) {
	events := make(chan Event, 10)
	p := fake(t, `trap 'sleep 0.3; echo "{\"v\":1,\"event\":\"interrupted\",\"run\":\"/out/run\",\"exit_code\":143,\"error\":\"stopped at step 1\"}"; exit 143' TERM
echo '{"v":1,"event":"started","run":"/out/run"}'
while :; do sleep 0.1; done`)
	ctx, cancel := context.WithCancel(background(t))
	go func() {
		<-events // started
		cancel()
	}()
	_, err := p.Run(ctx, Options{Events: events})
	failure := failed(t, err)
	if failure.Kind != Interrupted || failure.ExitCode != 143 || failure.Message != "stopped at step 1" || failure.RunDir != "/out/run" {
		t.Errorf("%+v", failure)
	}
	if !errors.Is(err, context.Canceled) {
		t.Error("a cancelled run must be told apart from one that somebody else stopped")
	}
}

func TestARunThatDoesNotStopIsKilledWithAllItsProcesses(t *testing.T) {
	p := fake(t, `trap '' TERM
sleep 60 &
echo $! >"$here/child"
echo '{"v":1,"event":"started","run":"/out/run"}'
while :; do sleep 1; done`)
	p.Grace = 300 * time.Millisecond
	events := make(chan Event, 10)
	ctx, cancel := context.WithCancel(background(t))
	go func() {
		<-events
		cancel()
	}()
	began := time.Now()
	_, err := p.Run(ctx, Options{Events: events})
	if failure := failed(t, err); failure.ExitCode != 137 || failure.Kind != RunError || failure.RunDir != "/out/run" {
		t.Errorf("%+v", failure)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Error("took", took)
	}
	written, _ := os.ReadFile(filepath.Join(p.Root, "child"))
	child, err := strconv.Atoi(strings.TrimSpace(string(written)))
	if err != nil {
		t.Fatal(err)
	}
	if !gone(child) {
		t.Error("process", child, "is still there")
	}
}

// gone tells whether a process has ended, which may take a moment after its SIGKILL.
func gone(pid int) bool {
	for range make([]int, 100) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil && syscall.Kill(pid, 0) != nil {
			return true
		}
		if _, after, found := strings.Cut(string(stat), ") "); found && strings.HasPrefix(after, "Z") {
			return true // dead; who adopted it has not looked yet
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

func TestAContextThatHasEndedStartsNothing(t *testing.T) {
	p := fake(t, `: >"$here/ran"; echo /out/run`)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := p.Run(ctx, Options{})
	if !errors.Is(err, context.Canceled) || failed(t, err).Kind != Interrupted {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(p.Root, "ran")); err == nil {
		t.Error("it ran")
	}
}

func TestTheChildHasNoTerminalAndNoInputAndTheDirectoryItIsGiven(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	p := fake(t, `[ ! -t 0 ] && [ ! -t 1 ] && [ ! -t 2 ] || exit 11
! read -r line || exit 12
! (: </dev/tty) 2>/dev/null || exit 13
[ "$PWD" = "$(pwd -P)" ] || exit 14
[ "$WANTED" = yes ] || exit 15
pwd -P`)
	p.Log, p.Env = &log, []string{"WANTED=yes"}
	result, err := p.Run(background(t), Options{Dir: dir})
	if want, _ := filepath.EvalSymlinks(dir); err != nil || result.RunDir != want {
		t.Fatal(result, err)
	}
	if log.String() != "this is a fake\n" {
		t.Errorf("the log has %q", log.String())
	}
}

func TestExportGivesTheNameAndTheModelfile(t *testing.T) {
	exported, err := fake(t, `[ "$1" = /out/run ] && [ "$#" = 2 ] && echo "$2"`).Export(background(t), "/out/run", "team/qwen3:0.6b-personal")
	if want := (Exported{"team/qwen3:0.6b-personal", "/out/run/Modelfile.team-qwen3-0.6b-personal"}); err != nil || exported != want {
		t.Errorf("%+v %v", exported, err)
	}
}

func TestExportWithoutOllamaStillGivesTheModelfile(t *testing.T) {
	exported, err := fake(t, "echo /out/run/Modelfile.m; echo 'export_ollama.sh: Ollama is not installed here' >&2; exit 3").
		Export(background(t), "/out/run", "m")
	if exported != (Exported{"", "/out/run/Modelfile.m"}) {
		t.Errorf("%+v", exported)
	}
	if failure := failed(t, err); failure.Kind != MachineError || failure.RunDir != "/out/run" || !strings.HasSuffix(failure.Message, "Ollama is not installed here") {
		t.Errorf("%+v", failure)
	}
}

func TestExportOfNoRunIsTheUsersErrorAndStartsNothing(t *testing.T) {
	p := fake(t, "touch \"$here/started\"")
	_, err := p.Export(background(t), "", "name")
	var failure *Error
	if !errors.As(err, &failure) || failure.Kind != UserError || !strings.Contains(failure.Message, "no run directory") {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(p.Root, "started")); err == nil {
		t.Fatal("export_ollama.sh was started")
	}
}

func TestExportOfABadNameIsTheUsersError(t *testing.T) {
	exported, err := fake(t, "exit 2").Export(background(t), "/out/run", "a b")
	if exported != (Exported{}) || failed(t, err).Kind != UserError {
		t.Errorf("%+v %v", exported, err)
	}
}

func TestCancellingAnExportEndsWhatItHasStarted(t *testing.T) {
	p := fake(t, `sh -c 'echo $$ >"$0/child"; exec sleep 60' "$here" >&2`)
	ctx, cancel := context.WithCancel(background(t))
	go func() {
		for {
			if data, _ := os.ReadFile(filepath.Join(p.Root, "child")); len(data) > 1 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	began := time.Now()
	_, err := p.Export(ctx, "/out/run", "m")
	if failed(t, err).Kind != Interrupted || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Error("took", took)
	}
	written, _ := os.ReadFile(filepath.Join(p.Root, "child"))
	if child, err := strconv.Atoi(strings.TrimSpace(string(written))); err != nil || !gone(child) {
		t.Error("process", child, "is still there", err)
	}
}
