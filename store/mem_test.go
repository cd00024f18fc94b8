package store_test

import (
	"os"
	"testing"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		beOtherAgent(url)
	}
	goleak.VerifyTestMain(m)
}

func TestMemDoesWhatEveryStoreMust(t *testing.T) {
	storetest.Run(t, func(testing.TB, int) func() (store.Store, error) {
		return func() (store.Store, error) { return store.OpenURL("mem:") }
	})
}

func TestMemDoesSoWithManyWorkers(t *testing.T) {
	for _, c := range storetest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t, func(testing.TB, int) func() (store.Store, error) {
				return func() (store.Store, error) {
					mem := store.NewMem()
					mem.SetMaxWorkers(4)
					return mem, nil
				}
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
