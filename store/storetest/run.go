package storetest

import (
	"testing"

	"pgregory.net/rapid"
)

// Run tries every check on the stores that mk makes, and a model of random
// lives that are shrunk when one fails.
func Run(t *testing.T, mk Maker) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t, mk); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a store agrees with a map over any life", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			life := steps().Draw(rt, "life")
			model := Check{roomPages: modelRoomPages, do: func(p *place) error { return live(p, life) }}
			if err := model.Run(t, mk); err != nil {
				rt.Fatal(err)
			}
		})
	})
}
