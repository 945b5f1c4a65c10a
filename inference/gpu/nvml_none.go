//go:build !(cgo && linux)

package gpu

import "io/fs"

// sources without cgo: the program that comes with the driver.
func sources(root fs.FS) []source { return []source{newSMI(root)} }
