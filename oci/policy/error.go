package policy

import (
	"strconv"
	"strings"
)

// AnnotationError says that an annotation is wrong: which one, what it holds and what
// is allowed. It stops the container whatever io.farpage.on-failure says, since a typo
// must not turn into a container that runs other than its author meant.
type AnnotationError struct {
	Key     string // as it was written
	Value   string
	Problem string // what is wrong with it
	Allowed string // what may stand there
}

// maxShownBytes bounds how much of a value an error repeats. Values come from whoever
// starts the container, and the message goes into engine logs.
const maxShownBytes = 128

// Error gives one line, made for the person who wrote the annotation.
func (e *AnnotationError) Error() string {
	return "annotation " + shownKey(e.Key) + "=" + shown(e.Value) + ": " + e.Problem + "; allowed: " + e.Allowed
}

// shown quotes text and cuts it where it is too long to repeat.
func shown(text string) string {
	if len(text) > maxShownBytes {
		return strconv.Quote(text[:maxShownBytes]) + "..."
	}
	return strconv.Quote(text)
}

// shownKey is shown for a key: an ordinary one stands without quotes.
func shownKey(key string) string {
	const ordinary = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"
	if len(key) <= maxShownBytes && strings.Trim(key, ordinary) == "" {
		return key
	}
	return shown(key)
}
