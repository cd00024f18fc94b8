package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// The smallest edits to a JSON text: a member is put in as the last one of its object, or
// taken out, and everything else stays as it was written.

// member is where one member of an object is in the text.
type member struct {
	key        string
	start, end int // of key and value together
	value      int // where the value begins
}

// object is where an object is in the text.
type object struct {
	open, shut int // of { and }
	members    []member
}

// objectAt reads the object that begins at the first character behind from.
func objectAt(text []byte, from int) (o object, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text[from:]))
	token, err := decoder.Token()
	if err != nil {
		return o, err
	}
	if token != json.Delim('{') {
		return o, errors.New("it is no object")
	}
	o.open = from + int(decoder.InputOffset()) - 1
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return o, err
		}
		name, ok := key.(string)
		if !ok {
			return o, fmt.Errorf("%v is no key", key)
		}
		keyEnd := from + int(decoder.InputOffset())
		m := member{key: name, start: keyStart(text, keyEnd)}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return o, err
		}
		m.end = from + int(decoder.InputOffset())
		m.value = m.end - len(value)
		o.members = append(o.members, m)
	}
	if _, err := decoder.Token(); err != nil {
		return o, err
	}
	o.shut = from + int(decoder.InputOffset()) - 1
	return o, nil
}

// keyStart finds the quotation mark that opens a key which ends at end.
func keyStart(text []byte, end int) int {
	for i := end - 2; ; i-- {
		if text[i] != '"' {
			continue
		}
		slashes := 0
		for k := i - 1; k >= 0 && text[k] == '\\'; k-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}

func (o object) find(key string) (member, bool) {
	for _, m := range o.members {
		if m.key == key {
			return m, true
		}
	}
	return member{}, false
}

// put adds a member as the last one. depth is how deep the object is nested, for the
// indentation of a text that shows none.
func put(text []byte, o object, key, value string, depth int) []byte {
	indent := "\n" + strings.Repeat(unit, depth)
	at, comma := o.open+1, ""
	if n := len(o.members); n > 0 {
		last := o.members[n-1]
		at, comma = last.end, ","
		indent = spaceBefore(text, last.start)
	}
	added := comma + indent + quote(key) + ": " + indented(value, indent)
	if len(o.members) == 0 {
		added += "\n" + strings.Repeat(unit, depth-1)
		return splice(text, at, o.shut, added)
	}
	return splice(text, at, at, added)
}

// unit is one step of indentation, as Docker's documentation has it.
const unit = "  "

// indented writes a value of several lines behind a key with this white space before it:
// in one line where the object is.
func indented(value, indent string) string {
	if strings.Contains(indent, "\n") {
		return strings.ReplaceAll(value, "\n", indent)
	}
	return strings.Join(strings.Fields(value), " ")
}

// cut takes a member out, with the comma that belongs to it.
func cut(text []byte, o object, key string) []byte {
	for i, m := range o.members {
		if m.key != key {
			continue
		}
		switch {
		case len(o.members) == 1:
			return splice(text, o.open+1, o.shut, "")
		case i > 0:
			return splice(text, o.members[i-1].end, m.end, "")
		default:
			return splice(text, m.start, o.members[1].start, "")
		}
	}
	return text
}

// spaceBefore is the white space in front of a place.
func spaceBefore(text []byte, at int) string {
	from := at
	for from > 0 && strings.ContainsRune(" \t\r\n", rune(text[from-1])) {
		from--
	}
	return string(text[from:at])
}

func splice(text []byte, from, to int, with string) []byte {
	return append(append(bytes.Clone(text[:from]), with...), text[to:]...)
}

func quote(s string) string {
	q, err := json.Marshal(s)
	if err != nil {
		return `""` // a string always has a form
	}
	return string(q)
}
