package kernel

import "fmt"

// Format is how a matrix stores its weights.
type Format uint8

// The formats of contract mk1, laid out as in GGUF files.
const (
	F32  Format = iota // 4 bytes a weight
	F16                // 2 bytes a weight, IEEE binary16
	Q8_0               // blocks of 32: a binary16 scale, then 32 signed bytes
	BF16               // 2 bytes a weight, the upper half of a binary32
	Q4_0               // blocks of 32: a binary16 scale, then 4 bits a weight, biased by 8
	Q4_K               // blocks of 256: 8 sub-blocks of 32 with scales and minimums of 6 bits, 4 bits a weight
	Q5_K               // as Q4_K, 5 bits a weight
	Q6_K               // blocks of 256: 16 sub-blocks of 16 with signed scales of 8 bits, 6 bits a weight
)

var formats = [...]struct {
	name        string
	block, size int
}{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, Q8_0: {"Q8_0", 32, 34}, Q4_0: {"Q4_0", 32, 18},
	Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210},
}

func (f Format) String() string {
	if int(f) >= len(formats) {
		return fmt.Sprintf("Format(%d)", uint8(f))
	}
	return formats[f].name
}

// BlockSize is the number of weights in a block, 0 for an unknown format.
func (f Format) BlockSize() int {
	if int(f) >= len(formats) {
		return 0
	}
	return formats[f].block
}

// BlockBytes is the number of bytes of a block.
func (f Format) BlockBytes() int { return formats[f].size }

// quantised tells whether weights come in blocks with scales, and products take the 8-bit form of the activations.
func (f Format) quantised() bool { return f.BlockSize() > 1 }
