package adapter

import (
	"os"
	"os/exec"
	"testing"
)

// TestLogitsProcessor runs the tests of the logits processor for vLLM.
func TestLogitsProcessor(t *testing.T) {
	if err := exec.CommandContext(t.Context(), "python3", "-c", "import numpy").Run(); err != nil {
		t.Skip("needs python3 with numpy")
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-m", "unittest")
	cmd.Dir, cmd.Env = "vllm", append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
