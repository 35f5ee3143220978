// Renders a TEMPLATE and reads a Modelfile the way Ollama does, with Go's real text/template. Written for the tests after
// the behaviour of Ollama's template/template.go, parser/parser.go, tools/template.go and thinking/template.go; JSON cases on
// stdin, one JSON answer each on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
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
	Think     *bool     `json:"think"`
	Modelfile *string   `json:"modelfile"`
}

type answer struct {
	Text     string      `json:"text"`
	Commands [][2]string `json:"commands,omitempty"`
	Error    string      `json:"error,omitempty"`
	// By which a call and thoughts are known in what a model writes.
	Call     string `json:"call"`
	Thoughts string `json:"thoughts"`
	Answer   string `json:"answer"`
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

// The children of a node that are looked into, its condition first.
func inside(n parse.Node) []parse.Node {
	var found []parse.Node
	branch := func(b *parse.BranchNode) {
		found = append(found, b.Pipe, b.List)
		if b.ElseList != nil {
			found = append(found, b.ElseList)
		}
	}
	switch x := n.(type) {
	case *parse.ListNode:
		found = x.Nodes
	case *parse.IfNode:
		branch(&x.BranchNode)
	case *parse.RangeNode:
		branch(&x.BranchNode)
	case *parse.WithNode:
		branch(&x.BranchNode)
	case *parse.ActionNode:
		found = append(found, x.Pipe)
	case *parse.TemplateNode:
		found = append(found, x.Pipe)
	case *parse.PipeNode:
		for _, c := range x.Cmds {
			found = append(found, c)
		}
	case *parse.CommandNode:
		found = x.Args
	}
	return found
}

func names(n parse.Node, field string) bool {
	if f, ok := n.(*parse.FieldNode); ok && f.Ident[0] == field {
		return true
	}
	for _, child := range inside(n) {
		if names(child, field) {
			return true
		}
	}
	return false
}

// InferTags: of the last place that names .Thinking in a loop over .Messages, the texts at both ends of its list.
func marks(n parse.Node, list *parse.ListNode, loop *parse.RangeNode, found *[2]string) {
	switch x := n.(type) {
	case *parse.ListNode:
		list = x
	case *parse.RangeNode:
		loop = x
	case *parse.FieldNode:
		if x.Ident[0] == "Thinking" && list != nil && loop != nil && names(loop.Pipe, "Messages") {
			for i, at := range []int{0, len(list.Nodes) - 1} {
				if t, ok := list.Nodes[at].(*parse.TextNode); ok {
					found[i] = strings.TrimSpace(string(t.Text))
				}
			}
		}
	}
	for _, child := range inside(n) {
		marks(child, list, loop, found)
	}
}

// The first condition that names .ToolCalls by itself.
func ifCalls(nodes []parse.Node) *parse.IfNode {
	for _, n := range nodes {
		var lists []*parse.ListNode
		switch x := n.(type) {
		case *parse.IfNode:
			for _, c := range x.Pipe.Cmds {
				for _, arg := range c.Args {
					if f, ok := arg.(*parse.FieldNode); ok && f.Ident[0] == "ToolCalls" {
						return x
					}
				}
			}
			lists = []*parse.ListNode{x.List, x.ElseList}
		case *parse.RangeNode:
			lists = []*parse.ListNode{x.List, x.ElseList}
		case *parse.WithNode:
			lists = []*parse.ListNode{x.List, x.ElseList}
		}
		for _, list := range lists {
			if list != nil {
				if found := ifCalls(list.Nodes); found != nil {
					return found
				}
			}
		}
	}
	return nil
}

// The first text there, which an action of another kind than a condition or a loop hides.
func firstText(nodes []parse.Node) (string, bool) {
	for _, n := range nodes {
		var lists []*parse.ListNode
		switch x := n.(type) {
		case *parse.TextNode:
			if strings.TrimSpace(string(x.Text)) != "" {
				return string(x.Text), true
			}
			continue
		case *parse.IfNode:
			lists = []*parse.ListNode{x.List, x.ElseList}
		case *parse.RangeNode:
			lists = []*parse.ListNode{x.List, x.ElseList}
		case *parse.WithNode:
			lists = []*parse.ListNode{x.List, x.ElseList}
		case *parse.ActionNode:
			return "", false
		default:
			continue
		}
		for _, list := range lists {
			if list != nil {
				if text, ok := firstText(list.Nodes); ok {
					return text, true
				}
			}
		}
		return "", false
	}
	return "", false
}

// parseTag: what begins a call; a brace where nothing does.
func callMark(root *parse.ListNode) string {
	if n := ifCalls(root.Nodes); n != nil {
		if text, ok := firstText(n.List.Nodes); ok {
			text, _, _ = strings.Cut(text, "{")
			if text = strings.TrimSpace(text); text != "" {
				return text
			}
		}
	}
	return "{"
}

func look(source string, a *answer) error {
	t, err := template.New("").Funcs(functions).Parse(source)
	if err != nil {
		return err
	}
	var found [2]string
	marks(t.Root, nil, nil, &found)
	a.Call, a.Thoughts, a.Answer = callMark(t.Root), found[0], found[1]
	return nil
}

func render(source string, messages []message, tools []tool, think *bool) (string, error) {
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
		values := map[string]any{"System": system, "Messages": merged, "Tools": tools, "Response": ""}
		values["Think"], values["IsThinkSet"], values["ThinkLevel"] = think != nil && *think, think != nil, ""
		err = t.Execute(&out, values)
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
			a.Text, err = render(q.Template, q.Messages, q.Tools, q.Think)
			if err == nil {
				err = look(q.Template, &a)
			}
		}
		if err != nil {
			a.Error = err.Error()
		}
		out.Encode(a)
	}
}
