package finetune

import (
	"bytes"
	"encoding/json"
	"errors"
)

// EventVersion is the version of the schema that this package reads ("v" in a line). See README.md.
const EventVersion = 1

// Event is one line of `run.sh --events`. Fields that an event does not have are zero; Raw holds all of them.
type Event struct {
	Version int     `json:"v"`
	Event   string  `json:"event"` // started, step, evaluation, checkpoint, stage, warning, done, failed, interrupted, ...
	Time    float64 `json:"time"`  // seconds since 1970

	Run   string `json:"run"`   // started, done, failed, interrupted: the run's folder
	Name  string `json:"name"`  // started: the new model; model: the base model; stage: the stage
	Total int    `json:"total"` // started, step: optimizer steps of the run

	Step            int      `json:"step"` // step: 1 to Total
	AtStep          int      `json:"at_step"`
	Epoch           float64  `json:"epoch"`
	Loss            *float64 `json:"loss"` // step, evaluation; nil when it is not a number
	LearningRate    float64  `json:"learning_rate"`
	GradientNorm    *float64 `json:"gradient_norm"`
	TokensPerSecond float64  `json:"tokens_per_second"`
	Elapsed         float64  `json:"elapsed"`     // step: seconds of training
	Remaining       float64  `json:"remaining"`   // step: seconds of training left, about
	PeakMemory      int64    `json:"peak_memory"` // step: bytes
	Seconds         float64  `json:"seconds"`     // stage
	Stage           string   `json:"stage"`       // progress: the stage that the run is in
	Progress        float64  `json:"progress"`    // step, progress: 0 to 100, over all stages
	Left            float64  `json:"left"`        // step, progress: seconds until all is done, about

	Path     string `json:"path"`    // checkpoint: its folder, relative to the run's
	Message  string `json:"message"` // warning
	Error    string `json:"error"`   // failed, interrupted: for people
	ExitCode *int   `json:"exit_code"`

	Raw json.RawMessage `json:"-"`
}

// parse reads one line. What is no event of this version is not one for us: the exit code decides how a run ended.
func parse(line []byte) (Event, bool) {
	var event Event
	var other *json.UnmarshalTypeError // a later program may write a field in another form: the rest is still good
	if err := json.Unmarshal(line, &event); err != nil && !errors.As(err, &other) {
		return Event{}, false
	}
	event.Raw = append(json.RawMessage(nil), line...)
	return event, event.Version == EventVersion && event.Event != ""
}

// listener takes the program's stdout apart into lines. It always takes everything at once, so that the program never
// waits in a write.
type listener struct {
	events   chan<- Event // nil: the lines are no events
	part     []byte       // of a line that has not ended yet
	runDir   string       // as the events say
	failure  string       // the error of the last event
	lastLine string
	missed   int
}

func (l *listener) Write(data []byte) (int, error) {
	l.part = append(l.part, data...)
	for {
		end := bytes.IndexByte(l.part, '\n')
		if end < 0 {
			return len(data), nil
		}
		l.line(bytes.TrimSuffix(l.part[:end], []byte("\r")))
		l.part = l.part[end+1:]
	}
}

func (l *listener) line(line []byte) {
	if len(bytes.TrimSpace(line)) > 0 {
		l.lastLine = string(line)
	}
	if l.events == nil {
		return
	}
	event, ok := parse(line)
	if !ok {
		return
	}
	if event.Run != "" {
		l.runDir = event.Run
	}
	l.failure = event.Error
	select {
	case l.events <- event:
	default:
		l.missed++
	}
}
