module sidecar.internal/tests/peers/kubelet

// What Debian 12 has, so that `cargo xtask setup` can install it there; the versions below suit it.
go 1.19

require (
	github.com/container-storage-interface/spec v1.9.0
	google.golang.org/grpc v1.64.1
	k8s.io/kubelet v0.26.15
)

require (
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	golang.org/x/net v0.26.0 // indirect
	golang.org/x/sys v0.21.0 // indirect
	golang.org/x/text v0.16.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240318140521-94a12d6c2237 // indirect
	google.golang.org/protobuf v1.33.0 // indirect
)
