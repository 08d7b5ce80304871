"""Plays the kubelet for the agent's CSI driver: registers it, has volumes published and taken away, and asks for what it
must refuse. The messages are written down here from the specifications, so that they are not our own idea of them.

    kubelet.py KUBELET_DIRECTORY
"""

import errno, os, sys
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# container-storage-interface/spec, csi.proto; k8s.io/kubelet, pluginregistration/v1/api.proto; google/protobuf/wrappers.proto.
STRING, BOOL, INT64, MESSAGE = 9, 8, 3, 11
MESSAGES = {
    "InfoRequest": [],
    "PluginInfo": [(1, "type", STRING), (2, "name", STRING), (3, "endpoint", STRING), (4, "supported_versions", STRING, True)],
    "RegistrationStatus": [(1, "plugin_registered", BOOL), (2, "error", STRING)],
    "Empty": [],
    "GetPluginInfoResponse": [(1, "name", STRING), (2, "vendor_version", STRING)],
    "BoolValue": [(1, "value", BOOL)],
    "ProbeResponse": [(1, "ready", "BoolValue")],
    "NodeGetInfoResponse": [(1, "node_id", STRING), (2, "max_volumes_per_node", INT64)],
    "MountVolume": [(1, "fs_type", STRING), (2, "mount_flags", STRING, True), (3, "volume_mount_group", STRING)],
    "AccessMode": [(1, "mode", INT64)],
    "VolumeCapability": [(1, "block", "Empty"), (2, "mount", "MountVolume"), (3, "access_mode", "AccessMode")],
    "Context": [(1, "key", STRING), (2, "value", STRING)],
    "NodePublishVolumeRequest": [
        (1, "volume_id", STRING), (3, "staging_target_path", STRING), (4, "target_path", STRING),
        (5, "volume_capability", "VolumeCapability"), (6, "readonly", BOOL), (8, "volume_context", "Context", True)],
    "NodeUnpublishVolumeRequest": [(1, "volume_id", STRING), (2, "target_path", STRING)],
}


def classes():
    file = descriptor_pb2.FileDescriptorProto(name="kubelet.proto", package="t", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, *repeated in fields:
            described = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                described.type, described.type_name = MESSAGE, f".t.{kind}"
            else:
                described.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.MessageFactory(pool)
    return {name: made.GetPrototype(pool.FindMessageTypeByName(f"t.{name}")) for name in MESSAGES}


T = classes()


def call(socket, method, request, answer="Empty"):
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        called = channel.unary_unary(method, lambda m: m.SerializeToString(), T[answer].FromString)
        return called(request, timeout=20)


def refused(code, *arguments, **named):
    try:
        call(*arguments, **named)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} ({error.details()}) instead of {code}"
        assert error.details(), "no reason"
        return
    raise AssertionError(f"not refused: {arguments}")


kubelet = sys.argv[1]
registry = f"{kubelet}/plugins_registry"
[socket] = [name for name in os.listdir(registry) if not name.startswith(".")]
info = call(f"{registry}/{socket}", "/pluginregistration.Registration/GetInfo", T["InfoRequest"](), "PluginInfo")
assert (info.type, info.name) == ("CSIPlugin", "agent.sidecar.internal"), info
assert "1.0.0" in info.supported_versions, info
csi = info.endpoint
assert csi.startswith(f"{kubelet}/plugins/"), csi
for path in (csi, f"{registry}/{socket}"):
    assert os.stat(path).st_mode & 0o077 == 0, f"others may connect to {path}"
status = T["RegistrationStatus"](plugin_registered=True)
call(f"{registry}/{socket}", "/pluginregistration.Registration/NotifyRegistrationStatus", status)

plugin = call(csi, "/csi.v1.Identity/GetPluginInfo", T["Empty"](), "GetPluginInfoResponse")
assert plugin.name == info.name and plugin.vendor_version, plugin
assert call(csi, "/csi.v1.Identity/Probe", T["Empty"](), "ProbeResponse").ready.value
call(csi, "/csi.v1.Identity/GetPluginCapabilities", T["Empty"]())
call(csi, "/csi.v1.Node/NodeGetCapabilities", T["Empty"]())
assert call(csi, "/csi.v1.Node/NodeGetInfo", T["Empty"](), "NodeGetInfoResponse").node_id

PUBLISH, UNPUBLISH = "/csi.v1.Node/NodePublishVolume", "/csi.v1.Node/NodeUnpublishVolume"
volume = f"{kubelet}/pods/6f0a3d2c/volumes/kubernetes.io~csi/agent"
target = f"{volume}/mount"


def publish(**changes):
    fields = dict(volume_id="csi-1", target_path=target, readonly=True,
                  volume_capability=T["VolumeCapability"](mount=T["MountVolume"](), access_mode=T["AccessMode"](mode=1)),
                  volume_context=[T["Context"](key="csi.storage.k8s.io/ephemeral", value="true"),
                                  T["Context"](key="csi.storage.k8s.io/pod.name", value="shop")])
    fields.update(changes)
    return T["NodePublishVolumeRequest"](**fields)


bad = grpc.StatusCode.INVALID_ARGUMENT
refused(grpc.StatusCode.FAILED_PRECONDITION, csi, PUBLISH, publish())
os.makedirs(volume)
refused(bad, csi, PUBLISH, publish(volume_id=""))
refused(bad, csi, PUBLISH, publish(target_path=""))
refused(bad, csi, PUBLISH, publish(volume_capability=None))
refused(bad, csi, PUBLISH, publish(volume_capability=T["VolumeCapability"](block=T["Empty"]())))
refused(bad, csi, PUBLISH, publish(volume_context=[T["Context"](key="csi.storage.k8s.io/ephemeral", value="false")]))
for elsewhere in ("/etc", f"{kubelet}/pods/../escaped", f"{volume}/other", f"{kubelet}/pods/a/volumes/kubernetes.io~empty-dir/x/mount"):
    refused(bad, csi, PUBLISH, publish(target_path=elsewhere))
    refused(bad, csi, UNPUBLISH, T["NodeUnpublishVolumeRequest"](volume_id="csi-1", target_path=elsewhere))
os.makedirs(f"{kubelet}/pods/evil/volumes")
os.symlink("/", f"{kubelet}/pods/evil/volumes/kubernetes.io~csi")
refused(bad, csi, PUBLISH, publish(target_path=f"{kubelet}/pods/evil/volumes/kubernetes.io~csi/mnt/mount"))
os.makedirs(f"{kubelet}/pods/sly/volumes/kubernetes.io~csi/agent")
os.symlink("/etc", f"{kubelet}/pods/sly/volumes/kubernetes.io~csi/agent/mount")
sly = f"{kubelet}/pods/sly/volumes/kubernetes.io~csi/agent/mount"
refused(bad, csi, PUBLISH, publish(target_path=sly))
refused(bad, csi, UNPUBLISH, T["NodeUnpublishVolumeRequest"](volume_id="csi-1", target_path=sly))
refused(grpc.StatusCode.UNIMPLEMENTED, csi, "/csi.v1.Node/NodeStageVolume", publish())
with grpc.insecure_channel(f"unix://{csi}") as channel:
    garbage = channel.unary_unary(PUBLISH, lambda m: m, lambda m: m)
    for bytes_, code in ((b"\xff\xff\xff\xff", bad), (b"x" * 1_000_000, grpc.StatusCode.RESOURCE_EXHAUSTED)):
        try:
            garbage(bytes_, timeout=20)
            raise AssertionError("garbage is taken")
        except grpc.RpcError as error:
            assert error.code() == code, error

call(csi, PUBLISH, publish())
call(csi, PUBLISH, publish())
mounts = [line.split() for line in open("/proc/self/mountinfo") if line.split()[4] == target]
assert len(mounts) == 1, mounts
assert {"ro", "nosuid", "nodev", "noexec"} <= set(mounts[0][5].split(",")), mounts
try:
    open(f"{target}/file", "w")
    raise AssertionError("it can be written to")
except OSError as error:
    assert error.errno == errno.EROFS, error
assert os.path.exists(f"{target}/agent.sock")
print("published", target, flush=True)

sys.stdin.read()
taken = T["NodeUnpublishVolumeRequest"](volume_id="csi-1", target_path=target)
call(csi, UNPUBLISH, taken)
call(csi, UNPUBLISH, taken)
assert not os.path.exists(target), "it is still there"
assert os.path.isdir(volume), "more was removed than was made"
print("ok", flush=True)
