// Plays the kubelet for the agent's CSI driver with the kubelet's own means: grpc-go, the published APIs, and dials that
// differ only in their authority. It registers the driver, has a volume published, and takes it away when its input ends.
//
//	kubelet KUBELET_DIRECTORY
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// For each call. The kubelet gives the first one a single second, which a loaded machine may need for itself.
const patience = 20 * time.Second

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: kubelet KUBELET_DIRECTORY"))
	}
	if err := play(os.Args[1]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}

func play(directory string) error {
	socket, err := onlySocket(filepath.Join(directory, "plugins_registry"))
	if err != nil {
		return err
	}
	driver, err := register(socket)
	if err != nil {
		return err
	}
	fmt.Println("registered")
	volume := filepath.Join(directory, "pods", "6f0a3d2c", "volumes", "kubernetes.io~csi", "agent")
	target := filepath.Join(volume, "mount")
	// The driver makes the last directory, the kubelet those before it.
	if err := os.MkdirAll(volume, 0o750); err != nil {
		return err
	}
	if err := publish(driver, target); err != nil {
		return fmt.Errorf("NodePublishVolume: %w", err)
	}
	if _, err := os.Stat(filepath.Join(target, "agent.sock")); err != nil {
		return fmt.Errorf("the volume: %w", err)
	}
	fmt.Println("published", target)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := unpublish(driver, target); err != nil {
		return fmt.Errorf("NodeUnpublishVolume: %w", err)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		return fmt.Errorf("%s is still there: %v", target, err)
	}
	fmt.Println("ok")
	return nil
}

// The kubelet passes over names that begin with a dot.
func onlySocket(registry string) (string, error) {
	entries, err := os.ReadDir(registry)
	if err != nil {
		return "", err
	}
	var found []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") {
			found = append(found, filepath.Join(registry, entry.Name()))
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d sockets in %s instead of one: %q", len(found), registry, found)
	}
	return found[0], nil
}

// Returns the driver's endpoint. All calls of a registration share one connection, and between them the driver is asked who
// its node is.
func register(socket string) (string, error) {
	// No authority is named, so that it is the path of the socket, percent-encoded.
	connection, err := dial(socket)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	plugins := registration.NewRegistrationClient(connection)
	info, err := within(func(ctx context.Context) (*registration.PluginInfo, error) {
		return plugins.GetInfo(ctx, &registration.InfoRequest{})
	})
	if err != nil {
		return "", fmt.Errorf("GetInfo: %w", err)
	}
	if info.Type != registration.CSIPlugin || info.Name != "agent.sidecar.internal" {
		return "", fmt.Errorf("a plugin of another kind or name: %v", info)
	}
	node, err := nodeInfo(info.Endpoint)
	if err != nil {
		return "", fmt.Errorf("NodeGetInfo: %w", err)
	}
	if node.NodeId == "" {
		return "", fmt.Errorf("a node without a name: %v", node)
	}
	// A refusal first, since the second message is then told from the first one by more than its length.
	for _, status := range []*registration.RegistrationStatus{
		{PluginRegistered: false, Error: "refused by a test, 100 % «no»"},
		{PluginRegistered: true},
	} {
		status := status
		_, err := within(func(ctx context.Context) (*registration.RegistrationStatusResponse, error) {
			return plugins.NotifyRegistrationStatus(ctx, status)
		})
		if err != nil {
			return "", fmt.Errorf("NotifyRegistrationStatus: %w", err)
		}
	}
	return info.Endpoint, nil
}

func nodeInfo(endpoint string) (*csi.NodeGetInfoResponse, error) {
	return onNode(endpoint, func(ctx context.Context, node csi.NodeClient) (*csi.NodeGetInfoResponse, error) {
		return node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	})
}

func publish(endpoint, target string) error {
	_, err := onNode(endpoint, func(ctx context.Context, node csi.NodeClient) (*csi.NodeGetCapabilitiesResponse, error) {
		return node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	})
	if err != nil {
		return err
	}
	request := &csi.NodePublishVolumeRequest{
		VolumeId:   "csi-9f3c",
		TargetPath: target,
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.name":            "shop",
			"csi.storage.k8s.io/pod.namespace":       "default",
			"csi.storage.k8s.io/pod.uid":             "6f0a3d2c",
			"csi.storage.k8s.io/serviceAccount.name": "default",
		},
	}
	_, err = onNode(endpoint, func(ctx context.Context, node csi.NodeClient) (*csi.NodePublishVolumeResponse, error) {
		return node.NodePublishVolume(ctx, request)
	})
	return err
}

func unpublish(endpoint, target string) error {
	request := &csi.NodeUnpublishVolumeRequest{VolumeId: "csi-9f3c", TargetPath: target}
	_, err := onNode(endpoint, func(ctx context.Context, node csi.NodeClient) (*csi.NodeUnpublishVolumeResponse, error) {
		return node.NodeUnpublishVolume(ctx, request)
	})
	return err
}

// A connection for each call, as the kubelet has it.
func onNode[T any](endpoint string, call func(context.Context, csi.NodeClient) (T, error)) (T, error) {
	connection, err := dial(endpoint, grpc.WithAuthority("localhost"))
	if err != nil {
		var none T
		return none, err
	}
	defer connection.Close()
	return within(func(ctx context.Context) (T, error) {
		return call(ctx, csi.NewNodeClient(connection))
	})
}

// The path is the target, and a dialer of its own makes the connection.
func dial(socket string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	options = append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithBlock(),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}))
	connection, err := grpc.DialContext(ctx, socket, options...)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", socket, err)
	}
	return connection, nil
}

func within[T any](call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return call(ctx)
}
