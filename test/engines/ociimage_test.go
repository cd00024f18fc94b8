package engines

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// ociImage packs a root file system as an OCI image layout in a tar, as engines import
// it (image-spec, image-layout.md). name is a full one, with a host and a tag.
func ociImage(t *testing.T, path, name, root string) {
	t.Helper()
	layer := filepath.Join(t.TempDir(), "layer.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", root, "-cf", layer, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	content, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[string][]byte{}
	add := func(mediaType string, blob []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(blob))
		blobs["blobs/sha256/"+digest] = blob
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(blob)}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const prefix = "application/vnd.oci.image."
	layerDescriptor := add(prefix+"layer.v1.tar", content)
	config := add(prefix+"config.v1+json", encode(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Env": []string{"PATH=/usr/bin:/bin"}, "Cmd": []string{"/bin/pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layerDescriptor["digest"]}},
	}))
	manifest := add(prefix+"manifest.v1+json", encode(map[string]any{
		"schemaVersion": 2, "mediaType": prefix + "manifest.v1+json", "config": config, "layers": []any{layerDescriptor},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	manifest["platform"] = map[string]string{"architecture": "amd64", "os": "linux"}
	blobs["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	blobs["oci-layout"] = encode(map[string]string{"imageLayoutVersion": "1.0.0"})

	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for name, blob := range blobs {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(blob))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(blob); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
