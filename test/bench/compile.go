package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// findRoot looks for the repository's folder, from the working folder upwards.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "test/bench/guest")); err == nil {
			return dir, nil
		}
	}
	return "", errors.Join(errors.New("the C programs' sources are not here: start it in the repository"), err)
}

// compile builds the C programs into dir.
func compile(ctx context.Context, root, dir string) error {
	for name, source := range map[string]string{
		"target": "test/bench/guest/target.c", "loop": "test/bench/guest/loop.c", "threads8": "test/guest/threads8.c",
	} {
		gcc := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread",
			"-o", filepath.Join(dir, name), filepath.Join(root, source))
		if output, err := gcc.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s: %w\n%s", source, err, output)
		}
	}
	return nil
}
