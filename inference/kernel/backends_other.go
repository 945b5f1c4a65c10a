//go:build !amd64

package kernel

func backends() []*backend { return backendList }

var backendList = []*backend{portable}
