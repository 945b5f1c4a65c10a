module github.com/gonka-mesh/mesh/peers

go 1.26.0

require (
	github.com/gonka-mesh/mesh v0.0.0
	golang.org/x/text v0.40.0
)

require (
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

replace github.com/gonka-mesh/mesh => ../
