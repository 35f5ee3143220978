// Renders a TEMPLATE and reads a Modelfile the way Ollama does, with Go's real text/template. Written for the tests after
// the behaviour of Ollama's template/template.go and parser/parser.go; JSON cases on stdin, one JSON answer each on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
)

// Arguments and properties are maps for a template (convertMessagesForTemplate, convertToolsForTemplate): Go writes them out
// in the order of the alphabet. A property keeps its own fields in an order of their own.
type call struct {
	Function struct {
		Name      string         `json:"name"`
		Arguments map[string]any `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role      string `json:"role"`
	Content   string `json:"content"`
	Thinking  string `json:"thinking"`
	ToolCalls []call `json:"tool_calls"`
}

type property struct {
	Type        any    `json:"type,omitempty"`
	Items       any    `json:"items,omitempty"`
	Description string `json:"description,omitempty"`
	Enum        []any  `json:"enum,omitempty"`
}

type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string              `json:"type"`
			Required   []string            `json:"required,omitempty"`
			Properties map[string]property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

type request struct {
	Template  string    `json:"template"`
	Messages  []message `json:"messages"`
	Tools     []tool    `json:"tools"`
	Modelfile *string   `json:"modelfile"`
}

type answer struct {
	Text     string      `json:"text"`
	Commands [][2]string `json:"commands,omitempty"`
	Error    string      `json:"error,omitempty"`
}

var namesMessages = regexp.MustCompile(`\.Messages\b`)
var functions = template.FuncMap{"json": func(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}}
var namesResponse = regexp.MustCompile(`\.Response\b`)

// Neighbours of one role become one message, but for results of calls; the system texts are also given joined, as .System.
func collate(messages []message) (string, []*message) {
	var systems []string
	var merged []*message
	for _, m := range messages {
		if m.Role == "system" {
			systems = append(systems, m.Content)
		}
		if n := len(merged); n > 0 && merged[n-1].Role == m.Role && m.Role != "tool" {
			merged[n-1].Content += "\n\n" + m.Content
		} else {
			copied := m
			merged = append(merged, &copied)
		}
	}
	return strings.Join(systems, "\n\n"), merged
}

func render(source string, messages []message, tools []tool) (string, error) {
	modern := namesMessages.MatchString(source)
	if !modern && !namesResponse.MatchString(source) {
		source += "{{ .Response }}" // Ollama adds it where neither is named
	}
	t, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(source)
	if err != nil {
		return "", err
	}
	system, merged := collate(messages)
	var out strings.Builder
	if modern {
		err = t.Execute(&out, map[string]any{"System": system, "Messages": merged, "Tools": tools, "Response": ""})
		return out.String(), err
	}
	if tools != nil {
		return "", fmt.Errorf("the template does not support tools")
	}
	// The older form: the template once a question and answer; the last time it ends where the answer begins.
	round := map[string]any{"System": "", "Prompt": "", "Response": ""}
	flush := func() {
		if err == nil {
			err = t.Execute(&out, round)
		}
		round = map[string]any{"System": "", "Prompt": "", "Response": ""}
	}
	for _, m := range merged {
		switch m.Role {
		case "system":
			if round["Prompt"] != "" || round["Response"] != "" {
				flush()
			}
			round["System"] = m.Content
		case "user":
			if round["Response"] != "" {
				flush()
			}
			round["Prompt"] = m.Content
		case "assistant":
			round["Response"] = m.Content
		}
	}
	const mark = "\x00answer\x00"
	open := round["Response"].(string)
	round["Response"] = mark
	flush()
	text, _, found := strings.Cut(out.String(), mark)
	if found {
		text += open
	}
	return text, err
}

func lineEnd(r rune) bool { return r == '\n' || r == '\r' }

// What a value means once its text is complete; false while its quotes are open.
func unquoted(text string) (string, bool) {
	text = strings.TrimSpace(text)
	for _, mark := range []string{`"""`, `"`} {
		if strings.HasPrefix(text, mark) {
			if len(text) < 2*len(mark) || !strings.HasSuffix(text, mark) {
				return "", false
			}
			return text[len(mark) : len(text)-len(mark)], true
		}
	}
	return text, true
}

func word(runes []rune, at int) (string, int) {
	start := at
	for at < len(runes) && (runes[at] == '_' || runes[at] < 128 && (runes[at]|32 >= 'a' && runes[at]|32 <= 'z')) {
		at++
	}
	return string(runes[start:at]), at
}

func modelfile(text string) ([][2]string, error) {
	runes := []rune(strings.TrimPrefix(text, "\ufeff"))
	var commands [][2]string
	for at := 0; at < len(runes); {
		switch r := runes[at]; {
		case r == '#':
			for at < len(runes) && !lineEnd(runes[at]) {
				at++
			}
			continue
		case r == ' ' || r == '\t' || lineEnd(r):
			at++
			continue
		}
		name, next := word(runes, at)
		name = strings.ToLower(name)
		switch name {
		case "from", "adapter", "template", "system", "license", "requires", "parameter":
		default:
			return nil, fmt.Errorf("no command: %q", name)
		}
		if name == "parameter" {
			name, next = word(runes, next+1)
		}
		if next >= len(runes) || runes[next] != ' ' && runes[next] != '\t' {
			return nil, fmt.Errorf("%s: no value", name)
		}
		var value strings.Builder
		closed := false
		for at = next + 1; ; at++ {
			if at == len(runes) || lineEnd(runes[at]) {
				if v, ok := unquoted(value.String()); ok {
					commands = append(commands, [2]string{name, v})
					closed = true
				}
			}
			if closed || at == len(runes) {
				break
			}
			if r := runes[at]; r == ' ' || r == '\t' || lineEnd(r) || strconv.IsPrint(r) {
				value.WriteRune(r)
			}
		}
		if !closed {
			return nil, fmt.Errorf("%s: quotes are not closed", name)
		}
	}
	return commands, nil
}

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for in.More() {
		var q request
		var a answer
		err := in.Decode(&q)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if q.Modelfile != nil {
			a.Commands, err = modelfile(*q.Modelfile)
		} else {
			a.Text, err = render(q.Template, q.Messages, q.Tools)
		}
		if err != nil {
			a.Error = err.Error()
		}
		out.Encode(a)
	}
}
