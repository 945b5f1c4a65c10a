package kernel

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/mk1.txt anew: only for a new version of the contract")

func TestSelfTest(t *testing.T) {
	if *update {
		if err := Use("portable"); err != nil {
			t.Fatal(err)
		}
		golden = vectors()
		if err := os.WriteFile("testdata/"+Contract+".txt", []byte(golden), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Use(""); err != nil {
			t.Fatal(err)
		}
	}
	if err := SelfTest(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(golden, "\n"); n < 30 {
		t.Errorf("%d golden vectors", n)
	}
}

// TestSelfTestFinds shows that a changed bit is noticed and named.
func TestSelfTestFinds(t *testing.T) {
	before := golden
	defer func() { golden = before }()
	at := strings.Index(golden, "\nsilu-mul") + 20
	golden = golden[:at] + "x" + golden[at+1:]
	err := SelfTest()
	if err == nil || !strings.Contains(err.Error(), "silu-mul") {
		t.Errorf("error %v, want one that names silu-mul", err)
	}
	golden = before[:len(before)/2]
	if SelfTest() == nil {
		t.Error("half a list passes")
	}
}

func TestUse(t *testing.T) {
	before := Backend()
	defer Use(before)
	if err := Use("abacus"); err == nil || Backend() != before {
		t.Errorf("unknown backend: %v, now %s", err, Backend())
	}
	if err := Use("portable"); err != nil || Backend() != "portable" {
		t.Errorf("portable: %v, now %s", err, Backend())
	}
	if err := Use(""); err != nil || Backend() != Backends()[0] {
		t.Errorf("fastest: %v, now %s", err, Backend())
	}
}

// TestVariable starts a process for each backend, as comparisons of whole programs do.
func TestVariable(t *testing.T) {
	if want := os.Getenv("KERNEL_TEST_WANT"); want != "" {
		if Backend() != want {
			t.Fatalf("%s=%s selects %s, want %s", Variable, os.Getenv(Variable), Backend(), want)
		}
		return
	}
	for name, want := range map[string]string{"": Backends()[0], "portable": "portable", Backends()[0]: Backends()[0], "abacus": Backends()[0]} {
		c := exec.Command(os.Args[0], "-test.run=^TestVariable$")
		c.Env = append(os.Environ(), Variable+"="+name, "KERNEL_TEST_WANT="+want)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%s", name, err, out)
		}
	}
}
