package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node/api"
)

// folderModel writes a model as a folder of three files of weights.
func folderModel(t *testing.T, shape string, vocab int) string {
	t.Helper()
	s, err := model.ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	s.Vocab = max(s.Vocab, vocab)
	dir := filepath.Join(t.TempDir(), "folder-"+shape)
	if err := model.SynthesizeDirectory(dir, s, model.BF16, 7, 3); err != nil {
		t.Fatal(err)
	}
	return dir
}

// askOnce asks a node for a model and returns the answer and who gave it.
func askOnce(t *testing.T, c *child, id string) (text, host string) {
	t.Helper()
	code, stdout, stderr := meshCommand(t, "chat", "what is it", "--json", "--max-tokens", "12", "--model", id, "--api", c.Ready.API)
	var a chatAnswer
	if err := json.Unmarshal([]byte(stdout), &a); err != nil || code != exitDone || a.Text == "" {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	return a.Text, a.Host.String()
}

// TestFolderModel serves a folder of safetensors from two hosts. A third pulls it by its
// ID, is killed in the middle, goes on from there, and answers as they do, alone and
// after a restart.
func TestFolderModel(t *testing.T) {
	dir := folderModel(t, "mid", 16<<10)
	n := newNetwork(t, 2, dir)
	models, err := n.client(n.light).Models(t.Context())
	if err != nil || len(models) != 1 || models[0].Hosts != 2 || models[0].Root.IsZero() {
		t.Fatalf("%+v, %v", models, err)
	}
	id := models[0].Model.String()
	want, _ := askOnce(t, n.light, id)

	third := n.start("host-2", "--threads", "1") // with the built-in one
	n.waitKnown(third, 2)
	_, err = n.client(third).PullModel(t.Context(), id, func(p api.Progress) {
		if p.Stage == "fetch" && p.Bytes > p.Total*2/5 && third != nil {
			if p.Bytes >= p.Total {
				t.Error("the files were there before the host could be killed")
			}
			n.kill(third)
			third = nil
		}
	})
	if err == nil || third != nil {
		t.Fatalf("the host was not killed: %v", err)
	}
	before := blobFiles(t, filepath.Join(n.dir, "host-2"))
	third = n.start("host-2", "--threads", "1")
	defer func() { third.stop() }()
	last := api.Progress{}
	m, err := n.client(third).PullModel(t.Context(), id, func(p api.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if last.Stage != "fetch" || last.Bytes != m.Bytes || last.Total != m.Bytes {
		t.Errorf("the last progress was %+v of %d", last, m.Bytes)
	}
	after := blobFiles(t, third.Ready.Home)
	if len(before) < 6 || len(after) != 8 { // manifest, four files of JSON, and weights
		t.Errorf("%d files were there after the kill, %d in the end", len(before), len(after))
	}
	for root, info := range before {
		if !os.SameFile(info, after[root]) {
			t.Errorf("%s was fetched anew: %+v", info.Name(), info)
		}
	}
	if home := filepath.Join(third.Ready.Home, "models"); m.Served || !strings.HasPrefix(m.Path, home) || m.Name != filepath.Base(dir) {
		t.Errorf("pulled: %+v", m)
	}
	if code, stdout, stderr := meshCommand(t, "model", "add", id, "--api", third.Ready.API, "--home", third.Ready.Home); code != exitDone || !strings.Contains(stdout, m.Root.String()) {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	third.stop()
	third = n.start("host-2", "--threads", "1")
	for i := range n.hosts {
		n.kill(n.hosts[i])
		n.hosts[i] = nil
	}
	if got, host := askOnce(t, third, id); got != want || host != third.Ready.Peer.String() {
		t.Errorf("%s answers %q, the others %q", host, got, want)
	}
	if code, stdout, stderr := meshCommand(t, "model", "rm", id, "--api", third.Ready.API, "--home", third.Ready.Home); code != exitDone {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	if _, err := os.Stat(m.Path); !os.IsNotExist(err) {
		t.Errorf("the pulled files are still there after rm: %v", err)
	}
	if left := blobFiles(t, third.Ready.Home); len(left) > 0 {
		t.Errorf("after rm: %v", left)
	}
}

// blobFiles returns what a home has of blobs, whole or in part, by the folders' names.
func blobFiles(t *testing.T, home string) map[string]os.FileInfo {
	t.Helper()
	out := map[string]os.FileInfo{}
	paths, err := filepath.Glob(filepath.Join(home, "blobs", "*", "data*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(filepath.Dir(path))] = info
	}
	return out
}

// TestAddFolder adds a folder to a node that runs, and removes it.
func TestAddFolder(t *testing.T) {
	n := newNetwork(t, 1, "")
	dir := folderModel(t, "tiny-qwen3", 0)
	flags := []string{"--api", n.hosts[0].Ready.API, "--home", n.hosts[0].Ready.Home}
	t.Chdir(filepath.Dir(dir))
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"add", filepath.Base(dir)}, dir},
		{[]string{"ls"}, "folder-tiny-qwen3"},
		{[]string{"show", "folder-tiny-qwen3"}, "served"},
		{[]string{"rm", "folder-tiny-qwen3"}, "folder-tiny-qwen3"},
	} {
		code, stdout, stderr := meshCommand(t, append(append([]string{"model"}, c.args...), flags...)...)
		if code != exitDone || !strings.Contains(stdout, c.want) {
			t.Errorf("mesh model %s: exit code %d, want %q in\n%s%s", strings.Join(c.args, " "), code, c.want, stdout, stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err != nil {
		t.Errorf("rm removed the files of the person: %v", err)
	}
	// A folder that is called like a model is not meant.
	if err := os.Mkdir("mesh-tiny", 0o700); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := meshCommand(t, append([]string{"model", "add", "mesh-tiny"}, flags...)...)
	if code != exitDone || !strings.Contains(stdout, "built in") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if code, _, stderr := meshCommand(t, append([]string{"model", "add", "./mesh-tiny"}, flags...)...); code != exitFailed || !strings.Contains(stderr, "config.json") {
		t.Errorf("a folder without a model: exit code %d: %s", code, stderr)
	}
}
